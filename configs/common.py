"""Parts that several experiments share. Each function returns a fresh ``ConfigDict``."""

from ml_collections import ConfigDict


def adamw(
    learning_rate: float, *, weight_decay: float = 0.2, warmup_steps: int = 2000
) -> ConfigDict:
    """AdamW with CLIP's betas and a cosine schedule; weight decay on matrices only."""
    return ConfigDict(
        {
            "name": "adamw",
            "learning_rate": learning_rate,
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-6,
            "weight_decay": weight_decay,
            "schedule": {"name": "cosine", "warmup_steps": warmup_steps},
        }
    )


def muon(
    learning_rate: float, *, weight_decay: float = 0.2, warmup_steps: int = 2000
) -> ConfigDict:
    """Muon (Jordan et al., 2024) for the kernels of layers, AdamW for all else.

    ``consistent_rms`` gives Muon's updates the size of AdamW's (Liu et al., 2025, arXiv:2502.16982,
    section 2.2), so that one learning rate and one weight decay serve both.
    """
    return ConfigDict(
        {
            "name": "muon",
            "learning_rate": learning_rate,
            "consistent_rms": 0.2,
            "weight_decay": weight_decay,
            "adam_weight_decay": weight_decay,
            "adam_b2": 0.98,
            "schedule": {"name": "cosine", "warmup_steps": warmup_steps},
        }
    )


def zclip(**options) -> ConfigDict:
    """ZClip (Kumar et al., 2025) on the global gradient norm."""
    return ConfigDict({"name": "zclip", **options})


def evaluation(*splits: str, every_steps: int, **options) -> ConfigDict:
    """Zero-shot classification and retrieval on each split."""
    return ConfigDict(
        {
            "zero_shot": list(splits),
            "retrieval": list(splits),
            "every_steps": every_steps,
            **options,
        }
    )


def start_from(weights: str, config_file: str) -> ConfigDict:
    """What weights determine of an experiment: ``init_from``, model, tokenizer, their pictures.

    Args:
      weights: a workdir or published weights.
      config_file: for the error, if they were not named.
    """
    if not weights:
        raise ValueError(f"name the weights to start from: configs/{config_file}.py:PATH")
    from jaxclip.train import init_from

    found = init_from.open_source(weights, f"configs/{config_file}.py").config
    pictures = ("image_size", "image_mean", "image_std", "eval_image_ops")
    return ConfigDict(
        {
            "seed": 0,
            "init_from": weights,
            "model": found["model"],
            "tokenizer": found["tokenizer"],
            "data": {key: found["data"][key] for key in pictures},
            "precision": {"compute_dtype": "bfloat16"},
        }
    )
