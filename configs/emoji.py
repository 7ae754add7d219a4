"""CLIP on the built-in emoji, in minutes on two CPU cores.

    bash launch/local.sh configs/emoji.py

Trains on two drawing styles (Noto, Twemoji) and is judged on a third one (Fluent, ``test_style``),
among all its names, and on ideas that occur nowhere in training (``test_concept``).
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is not used."""
    del arg
    config = ConfigDict()
    config.seed = 0
    config.global_batch_size = 256
    config.total_steps = 1500

    config.model = {"preset": "tiny"}
    config.tokenizer = {"kind": "emoji_bpe", "context_length": 24}
    config.data = {
        "name": "emoji",
        "image_size": 64,
        "image_ops": (
            "affine(degrees=15, translate=0.08, scale_min=0.75, scale_max=1.25)|background(0.5)"
            "|color_jitter|grayscale(0.1)|blur(1.0, 0.1)"
        ),
    }

    config.loss = {"name": "softmax"}
    config.optim = common.adamw(1e-3, weight_decay=0.2, warmup_steps=100)
    config.optim.clip = common.zclip()
    config.ema_decay = 0.998

    config.evaluate = common.evaluation(
        "test_style", "test_concept", every_steps=500, gallery_split="test_style"
    )
    config.checkpoint = {"every_steps": 500, "best_metric": "test_style/zero_shot/top1"}
    return config
