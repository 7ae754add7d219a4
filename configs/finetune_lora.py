"""Train low-rank additions to attention alone (LoRA): a thousandth of the parameters.

    jaxclip train --config configs/finetune_lora.py:ViT-B-16.pt --workdir runs/lora \
        --config.data.name=/data/pets/1.0.0
    jaxclip weights merge-lora --from runs/lora --to weights/pets

Hu et al. (2021, arXiv:2106.09685) as Zanella and Ben Ayed (2024, arXiv:2405.18541) set it for CLIP:
query, key and value of all blocks of both towers, rank 2, the temperature frozen. ``scaling`` is
alpha / rank for alpha = 1; their code divides by the root of the rank (0.707). Whatever reads the
workdir (``jaxclip.load``, ``weights export``) gets the sums. Their dropout of the additions' inputs
is not here.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_lora")
    config.global_batch_size = 32
    config.total_steps = 8000  # 500 times 16 shots
    config.data.name = "/data/pets/1.0.0"
    config.data.image_ops = "random_resized_crop(0.08, 1.0)|flip"
    config.low_rank = {
        "rank": 2,
        "scaling": 0.5,
        "patterns": [r"blocks_\d+/attention/(query|key|value)/kernel$"],
    }
    config.objective = [{"name": "flyp", "templates": "a photo of a {}."}]
    config.optim = common.adamw(2e-4, weight_decay=0.01, warmup_steps=0)
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.groups = [{"pattern": r"^(?!low_rank/)", "frozen": True}]
    return config
