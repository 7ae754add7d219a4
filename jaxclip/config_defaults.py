"""Every key of a configuration with its default; importing it imports nothing else."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def defaults() -> Config:
    """Every key of a configuration with its default value (a fresh copy)."""
    return {
        "seed": 0,
        "total_steps": 1000,
        "global_batch_size": 256,
        # GradCache: embeddings of all micro-batches first, one loss, then the backward passes.
        "num_micro_batches": 1,
        "data": {},  # jaxclip.data.pipeline.DEFAULTS, laid under by resolve
        # context_length: 77 for kinds clip and roberta, 64 for siglip and gemma, unless it is set.
        "tokenizer": {"kind": "emoji_bpe", "path": "", "context_length": 32},
        "model": {"preset": "tiny"},
        # Terms of the loss: [{"name": "contrastive", "weight": 1.0, …}, …], see docs/methods.md;
        # empty: `loss` is the only one.
        "objective": [],
        "loss": {"name": "softmax"},
        # Whose outputs objectives see as teacher/image, teacher/text: none, frozen (the run at
        # path), ema (the run's own, followed with decay), stored (vectors in the records),
        # reinforced (the folder path of `jaxclip data reinforce`).
        "teacher": {
            "kind": "none",
            "path": "",
            "decay": 0.996,
            "size": 0,
            "image_key": "teacher_image",
            "text_key": "teacher_text",
        },
        # Initial parameters: a workdir; tensors that match a pattern start anew.
        "init_from": "",
        "init_from_exclude": [],
        # Low-rank additions to kernels (LoRA): rank 0 = none. What does not train beside them is
        # frozen by optim.groups.
        "low_rank": {
            "rank": 0,
            "scaling": 1.0,
            "patterns": [r"blocks_\d+/attention/(query|key|value)/kernel$"],
        },
        # Sparse weights: [{"name": "n_m", "tensors": "mlp/", …}], see docs/stability.md.
        "sparsity": [],
        "optim": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "weight_decay": 0.2,
            "clip": {"name": "none"},
            "schedule": {"name": "cosine", "warmup_steps": 100},
        },
        "ema_decay": 0.0,  # 0 = no moving average of the parameters
        "logit_scale_max": 4.605170185988092,  # ln 100, as CLIP
        # residual_dtype: of the tokens between the blocks; None for compute_dtype. products: what
        # linear layers of blocks multiply by, in place of compute_dtype: [{"name": "switchback",
        # "layers": "mlp/"}, …], see docs/stability.md.
        "precision": {"compute_dtype": "float32", "residual_dtype": None, "products": []},
        "remat": "none",
        "scan_layers": False,
        "attention_implementation": None,
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "sharding": "dp",
        "offload_optimizer_state": False,  # to the host's memory between steps
        # A step whose gradient is not finite changes nothing and is counted; this many in a row
        # stop the run.
        "max_consecutive_nonfinite": 50,
        # What is seen of a spike: docs/stability.md. `enabled` adds numbers of each tensor to the
        # step, and writes workdir/spikes/ on an event.
        "watch": {
            "enabled": False,
            # A spike lies so many standard deviations above the mean of the last `window` steps.
            "threshold": 10.0,
            "window": 1000,
            "min_history": 100,
            "steps_kept": 32,  # what an event shows of the time before it
            "probe_every_steps": 20,  # attention logits and embedding norms; 0 = never
            "probe_examples": 8,
            "max_events": 20,  # that are written
        },
        # What is done about it: skip, clip, lower_rate, reset_moments, several of these, or rewind.
        "on_spike": {
            "actions": [],
            "rate_factor": 0.1,  # lower_rate: for rate_steps steps
            "rate_steps": 100,
            "rewind_steps": 100,  # rewind: to a checkpoint that is at least so much older
            "rewind_batches": 0,  # pass over so many batches up to the spike's; 0 = all since then
            "rewind_beyond": 0,  # pass over so many behind the spike's batch, too
            "rewind_limit": 3,  # so often in a run
        },
        "skip_batches": [],  # [[first, last], …] batches of the data order that are passed over
        "checkpoint": {
            "every_steps": 500,  # 0 = only after the last step
            "keep_last": 2,
            "keep_best": 1,
            "best_metric": "",
            "best_mode": "max",
        },
        "evaluate": {
            "every_steps": 0,  # 0 = only after the last step
            "batch_size": 128,
            "zero_shot": [],  # splits
            "retrieval": [],  # splits
            "templates": ["{}"],
            "gallery_split": "",
            # Fewer patches in the image tower: {"name": "tome", "r": 8}; see docs/evaluation.md.
            "token_reduction": {},
            "tasks": [],  # dicts: name, data, split, …; see docs/evaluation.md
        },
        "log_every_steps": 20,  # metrics to disk, and a row of progress
        # A trace of these steps for TensorBoard's profiler, in workdir/profile; 0 steps = none.
        "profile": {"start_step": 10, "num_steps": 0},
        # Names, or dicts with a name and options: jsonl (always on), tensorboard, wandb, mlflow.
        "writers": ["jsonl", "tensorboard"],
        # Several processes: a silent one counts as dead, and ends the run, after the heartbeat.
        "distributed": {
            "heartbeat_timeout_seconds": 60,
            "initialization_timeout_seconds": 300,
            "shutdown_timeout_seconds": 300,
        },
        "compilation_cache_dir": "",
    }
