"""CLIP on the built-in emoji, in minutes on two CPU cores.

    bash launch/local.sh configs/emoji.py          # 10 minutes on fast cores, 25 on slow ones
    bash launch/local.sh configs/emoji.py:short    # 30% of the steps: 17% top-1 instead of 43%

Trains on two drawing styles (Noto, Twemoji) and is judged on a third one (Fluent, ``test_style``)
among all its names, and on ideas that occur nowhere in training (``test_concept``). What each
choice brought is in docs/benchmarks.md.
"""

import common
from ml_collections import ConfigDict

# The styles differ in outline, shading and shade of colour: pictures are turned, moved and scaled,
# and colours changed, but not mirrored (there are left and right arrows).
IMAGE_OPS = (
    "affine(degrees=15, translate=0.08, scale_min=0.75, scale_max=1.25)"
    "|color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)"
    "|grayscale(0.1)|blur(1.0, 0.1)"
)


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is empty or ``"short"``."""
    if arg not in ("", "short"):
        raise ValueError(f"configs/emoji.py has no variant {arg!r}; there is 'short'")
    config = ConfigDict()
    config.seed = 0
    config.global_batch_size = 128
    config.total_steps = 2000  # 73 epochs

    # Nearly all work is in 3x3 convolutions, which run at a core's peak; they leave 16 tokens.
    config.model = {
        "preset": "tiny",
        "image": {
            "stem": "conv",
            "stem_widths": [32, 64, 128],  # grids of 16, 8 and 4
            "stem_depth": 2,
            "patch_size": 16,
            "width": 192,
            "depth": 1,
            "activation": "quick_gelu",
        },
        "text": {"depth": 1, "activation": "quick_gelu"},
    }
    # The longest caption has 20 tokens, one in a hundred has more than 15.
    config.tokenizer = {"kind": "emoji_bpe", "context_length": 16}
    config.data = {"name": "emoji", "image_size": 64, "image_ops": IMAGE_OPS}

    # Chosen on one training style against the other, docs/benchmarks.md: 46% for CLIP's loss' 39%.
    config.objective = [{"name": "dcl"}]
    config.optim = common.muon(1e-3, weight_decay=0.2, warmup_steps=100)
    # No fixed limit beside the adaptive one: norms are 2 to 10 here, a limit of 1 would always act.
    config.optim.clip = common.zclip(max_norm=None)
    config.ema_decay = 0.998

    config.evaluate = common.evaluation(
        "test_style", "test_concept", every_steps=500, gallery_split="test_style"
    )
    config.checkpoint = {"every_steps": 500, "best_metric": "test_style/zero_shot/top1"}
    if arg == "short":
        shorten(config)
    return config


def shorten(config: ConfigDict) -> None:
    """Fewer steps, and one evaluation at their end."""
    config.total_steps = 600
    config.optim.schedule.warmup_steps = 50
    config.ema_decay = 0.99
    config.evaluate.every_steps = 0
    config.checkpoint.every_steps = 300
