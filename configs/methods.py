"""The emoji recipe with another training method, to compare methods at one size.

    bash launch/local.sh configs/methods.py:slip
    bash launch/local.sh configs/methods.py:flip
    bash launch/local.sh configs/methods.py:flip_unmasked --config.init_from=workdir/flip

What follows the colon is an objective of docs/methods.md, or a second phase of SECOND_PHASES. Each
run wants a workdir of its own: ``WORKDIR=workdir/slip bash launch/local.sh …``.
"""

import emoji
from ml_collections import ConfigDict

# Strong views of 64 pixels: nearer and farther than the recipe's, and not mirrored.
STRONG_OPS = (
    "affine(degrees=25, translate=0.15, scale_min=0.6, scale_max=1.5, shear=10)"
    "|color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)|blur(1.5, 0.5)"
    "|random_erasing(p=0.2)"
)

ROCKET = {"image_ops": STRONG_OPS, "width": 512, "features": 128}

# Options that suit towers of 192 and 128 channels; a method that is not here has its defaults.
OPTIONS = {
    "slip": {"image_ops": STRONG_OPS, "width": 512, "features": 128},
    # The recipe's text tower is bidirectional.
    "coca": {"from_embeddings": True, "num_queries": 16},
    "filip": {"features": 128, "tile_size": 64},
    "a_clip": {"image_ops": STRONG_OPS, "width": 512, "features": 128},
    "sparc": {"features": 128},
    "clip_rocket": ROCKET,
    "byolip": {**ROCKET, "predict_width": 512, "predict_features": 64},
    "siamlip": {**ROCKET, "predict_width": 512, "predict_features": 64},
    "barlip": {**ROCKET, "bar_width": 512, "bar_features": 512},
    "swalip": ROCKET,
}

TEACHERS = {
    "byolip": {"kind": "ema", "decay": 0.99},
    "a_clip": {"kind": "ema", "decay": [[0, 0.996], [2000, 1.0]]},
}

# Objective, its options, and the share of the recipe's steps and learning rate.
SECOND_PHASES = {"flip_unmasked": ("flip", {"mask_ratio": 0.0}, 0.1)}


def get_config(arg: str = "contrastive") -> ConfigDict:
    """The experiment; ``arg`` is the name of the method."""
    config = emoji.get_config()
    name, options, share = SECOND_PHASES.get(arg, (arg, OPTIONS.get(arg, {}), 1.0))
    config.objective = [{"name": name, **options}]
    if name in TEACHERS:
        config.teacher = TEACHERS[name]
    if share < 1.0:
        config.total_steps = int(share * config.total_steps)
        config.optim.learning_rate *= share
        config.optim.schedule.warmup_steps = int(share * config.optim.schedule.warmup_steps)
        config.evaluate.every_steps = config.checkpoint.every_steps = config.total_steps
    return config
