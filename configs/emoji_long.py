"""The emoji recipe with stronger augmentation and twice the steps.

    bash launch/local.sh configs/emoji_long.py

Twenty minutes on two fast CPU cores, fifty on slow ones. What it reached, and after how many steps,
is in docs/benchmarks.md.
"""

import emoji
from ml_collections import ConfigDict

# More passes over the same 3488 pictures want more variation of them.
IMAGE_OPS = (
    "affine(degrees=20, translate=0.1, scale_min=0.7, scale_max=1.3, shear=10)"
    "|color_jitter(brightness=0.4, contrast=0.4, saturation=0.5, hue=0.1)"
    "|grayscale(0.1)|blur(1.0, 0.1)|random_erasing(p=0.2)"
)


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is not used."""
    del arg
    config = emoji.get_config()
    config.total_steps = 4000
    config.data.image_ops = IMAGE_OPS
    config.optim.schedule.warmup_steps = 200
    config.ema_decay = 0.999
    config.evaluate.every_steps = 1000
    config.checkpoint.every_steps = 1000
    return config
