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
