"""Time of a training step on the devices at hand, alone or against PyTorch.

    python -m jaxclip.bench step                                       # the tiny preset
    python -m jaxclip.bench step --preset vit_b32 --batch_size 64 precision.compute_dtype=bfloat16
    python -m jaxclip.bench step --against torch

Arguments of the form ``key=value`` change the configuration, as ``--config.key=value`` does for
``jaxclip train``. The data are made up and lie on the device: the input pipeline is not measured.

``--against torch`` trains one fixed small model (ViT 256 wide, 6 layers, patches of 8 at 64 px;
text 256 wide, 4 layers, 32 tokens of 49 408; batch 128, float32, AdamW) here and in PyTorch on the
CPU, in turn, in one process, from the same weights on the same batch.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import config as config_lib
from jaxclip import parallel
from jaxclip.bench import timing
from jaxclip.config import Config
from jaxclip.markdown import table
from jaxclip.train import allocator

# Matrix FLOP/s of one device by `device_kind`, bfloat16 inputs, no sparsity; vendors' data sheets.
# TPUs are in jaxclip.plan.chips.
_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
_GPU_PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}

_SMALL: Config = {
    "model": {
        "preset": "vit_b16",
        "image": {"patch_size": 8, "width": 256, "depth": 6, "num_heads": 4, "mlp_dim": 1024},
        "text": {"width": 256, "depth": 4, "num_heads": 4, "mlp_dim": 1024, "vocab_size": 49_408},
        "embed_dim": 256,
    },
    "data": {"image_size": 64},
    "tokenizer": {"context_length": 32},
    "global_batch_size": 128,
    "optim": {
        "name": "adamw",
        "learning_rate": 1e-3,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-6,
        "weight_decay": 0.2,
        "schedule": {"name": "constant", "warmup_steps": 0},
    },
}


class Trainer(NamedTuple):
    """A compiled step and what it needs.

    Attributes:
      step: does one step, waits for it, returns the loss; reads what the loop reads of a watch.
      flops: floating-point operations of a step, over all devices, as XLA counts them before
        optimising; with remat they include what is computed twice.
      memory_bytes: arguments, results and temporaries of the compiled program on one device.
      params: the initial parameters, on the host.
      batch: the batch, on the host.
      compile_seconds: tracing and compiling.
      bytes_accessed: by the compiled program, as XLA counts them: operands and results of all that
        was not fused away.
    """

    step: Callable[[], float]
    flops: float
    memory_bytes: int
    params: Any
    batch: dict[str, np.ndarray]
    compile_seconds: float
    bytes_accessed: float = 0.0


def make_trainer(config: Config, devices: Sequence[Any] | None = None) -> Trainer:
    """Build and compile the real training step of a resolved configuration, on made-up data.

    Args:
      config: resolved configuration.
      devices: of the mesh; default: all.
    """
    from jaxclip.train import dry_run, setup

    experiment = setup.build(config, devices=devices)
    state = experiment.init_state()
    params = jax.device_get(state.params)
    batch = dry_run.made_up_batch(config)
    on_device = parallel.to_global(batch, experiment.mesh)
    began = time.perf_counter()
    lowered = experiment.train_step.lower(experiment.abstract_state, experiment.abstract_batch())
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    costs: Any = lowered.cost_analysis()
    held = [state]  # the step donates the state given to it

    def step() -> float:
        held[0], metrics = compiled(held[0], on_device)
        loss = float(jax.block_until_ready(metrics["loss"]))
        if "watch/spike" in metrics:
            int(metrics["watch/spike"])
        return loss

    return Trainer(
        step=step,
        flops=float(costs["flops"]),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        params=params,
        batch=batch,
        compile_seconds=seconds,
        bytes_accessed=float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0)),
    )


def measured_peak(dtype: str, size: int = 2048, rounds: int = 10) -> float:
    """FLOP/s of one large matrix product on one device, best of some rounds.

    Args:
      dtype: of the inputs.
      size: side of the matrices.
      rounds: how many.
    """
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds)


def known_peak(device_kind: str) -> float | None:
    """The vendor's FLOP/s of a device in bfloat16; None for a CPU or an unknown device."""
    from jaxclip.plan import chips

    if device_kind in _TPU_KINDS:
        return chips.get(_TPU_KINDS[device_kind]).matmul_flops
    for name, peak in _GPU_PEAKS.items():
        if name in device_kind:
            return peak
    return None


def peak_memory() -> tuple[int, str]:
    """Most bytes in use so far, and where they were counted."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "on the first device"
    # Linux counts in KiB. The process holds the program, its inputs and the runtime.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "of the process (RSS)"


def step_seconds(trainer: Trainer, rounds: int) -> list[float]:
    """Seconds of each of some steps, after two that are not counted."""
    for _ in range(2):
        trainer.step()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        trainer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def report(config: Config, rounds: int) -> dict[str, float]:
    """Measure and print the step of a configuration.

    Returns:
      ``step_seconds`` (median), ``images_per_second``, ``flops`` (of a step), ``mfu`` (share of
      the peak of all devices, the vendor's where known, else measured).
    """
    trainer = make_trainer(config)
    devices = jax.devices()
    dtype = config["precision"]["compute_dtype"]
    seconds = step_seconds(trainer, rounds)
    median = statistics.median(seconds)
    measured = measured_peak(dtype)
    vendor = known_peak(devices[0].device_kind) if dtype != "float32" else None
    peak = vendor or measured
    rate = trainer.flops / median
    result = {
        "step_seconds": median,
        "images_per_second": config["global_batch_size"] / median,
        "flops": trainer.flops,
        "mfu": rate / (peak * len(devices)),
    }
    used, where = peak_memory()
    count = sum(leaf.size for leaf in jax.tree.leaves(trainer.params))
    source = "vendor's" if vendor else "measured"
    print(
        f"{config['model']['preset']}: {count / 1e6:.2f} M parameters, batch "
        f"{config['global_batch_size']}, {dtype}, on {len(devices)} devices: "
        f"{devices[0].device_kind}\n"
        f"step         {1e3 * median:.1f} ms (median of {rounds}; {1e3 * min(seconds):.1f} to "
        f"{1e3 * max(seconds):.1f}), {result['images_per_second']:.0f} images/s\n"
        f"rate         {rate / 1e9:.1f} GFLOP/s ({trainer.flops / 1e9:.2f} GFLOP a step), "
        f"{100 * result['mfu']:.0f}% of the {source} peak of {peak / 1e9:.0f} GFLOP/s a device\n"
        f"memory       {used / 2**20:.0f} MiB {where}; the compiled step needs "
        f"{trainer.memory_bytes / 2**20:.0f} MiB a device\n"
        f"compilation  {trainer.compile_seconds:.1f} s"
    )
    return result


def against_torch(config: Config, rounds: int) -> dict[str, timing.Timing]:
    """Train here and in PyTorch in turn; print times and ratio.

    Raises:
      ModuleNotFoundError: there is no PyTorch.
      RuntimeError: the two do not compute the same loss: it would be no comparison.
    """
    from jaxclip.bench import torch_clip  # first: it fails at once without PyTorch

    torch_clip.set_num_threads(len(os.sched_getaffinity(0)))
    trainer = make_trainer(config)
    opponent = torch_clip.Trainer(
        models_config(config),
        trainer.params,
        _torch_optimizer(config["optim"]),
        config["data"]["image_mean"],
        config["data"]["image_std"],
    )
    batch = trainer.batch
    count = sum(leaf.size for leaf in jax.tree.leaves(trainer.params))
    if opponent.parameter_count() != count:
        raise RuntimeError(f"PyTorch trains {opponent.parameter_count()} parameters, JAX {count}")
    for update in range(3):
        losses = trainer.step(), opponent.step(batch["image"], batch["text"])
        print(f"loss after {update} updates: jax {losses[0]:.4f}, torch {losses[1]:.4f}")
        if abs(losses[0] - losses[1]) > 0.01 * abs(losses[1]):
            raise RuntimeError("the two models differ: the comparison would be worthless")
    timings = timing.take_turns(
        {
            "torch": lambda: opponent.step(batch["image"], batch["text"]),
            "jax": trainer.step,
        },
        reference="torch",
        rounds=rounds,
    )
    peak = measured_peak("float32")
    rows = [["step", "median ms", "fastest ms", "GFLOP/s", "ratio to torch"]]
    for name, t in timings.items():
        rate = trainer.flops / t.median / 1e9
        row = [name, f"{1e3 * t.median:.0f}", f"{1e3 * t.low:.0f}", f"{rate:.0f}", f"{t.ratio:.2f}"]
        rows.append(row)
    print(
        f"{count / 1e6:.2f} M parameters, batch {config['global_batch_size']}, float32, "
        f"{len(os.sched_getaffinity(0))} CPUs, {rounds} rounds in turn; one matrix product runs at "
        f"{peak / 1e9:.0f} GFLOP/s, at which the step's {trainer.flops / 1e9:.0f} GFLOP would take "
        f"{1e3 * trainer.flops / peak:.0f} ms\n\n{table(rows)}"
    )
    return timings


def models_config(config: Config) -> Any:
    """The ``CLIPConfig`` of a resolved configuration."""
    from jaxclip.models import presets

    return presets.CLIPConfig.from_dict(
        {key: value for key, value in config["model"].items() if key != "preset"}
    )


def _torch_optimizer(optim: Config) -> dict[str, Any]:
    return {
        "lr": optim["learning_rate"],
        "betas": (optim["b1"], optim["b2"]),
        "eps": optim["eps"],
        "weight_decay": optim["weight_decay"],
    }


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="tiny", help="model preset (default: tiny)")
    parser.add_argument("--batch_size", type=int, default=128, help="global batch (default: 128)")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps (default: 10)")
    parser.add_argument("--against", choices=["torch"], help="compare with PyTorch on the CPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    options = parser.parse_args(list(arguments))
    if options.against:
        jax.config.update("jax_platforms", "cpu")
    if allocator.runs_on_cpu():
        allocator.keep_freed_memory()  # as `jaxclip train` does; PyTorch gains from it, too
    try:
        if options.against:
            against_torch(config_lib.resolve(_SMALL, options.overrides), options.rounds)
        else:
            given = {
                "model": {"preset": options.preset},
                "global_batch_size": options.batch_size,
            }
            report(resolve_preset(given, options.overrides), options.rounds)
    except (ValueError, ModuleNotFoundError) as error:
        parser.exit(2, f"jaxclip.bench step: error: {error}\n")
    return 0


def resolve_preset(given: Config, overrides: Sequence[str]) -> Config:
    """Resolve, with image size and context length of the preset unless the user sets them."""
    from jaxclip.models import presets

    preset = presets.get(given["model"]["preset"])
    given["data"] = {"image_size": preset.image.image_size}
    given["tokenizer"] = {"context_length": preset.text.context_length}
    return config_lib.resolve(given, overrides)
