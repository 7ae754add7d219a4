"""Train the text tower alone, the image tower locked (LiT).

    jaxclip train --config configs/finetune_lit.py:ViT-B-16.pt --workdir runs/lit \
        --config.data.name='webdataset:/data/cc12m/{00000..01242}.tar'

Zhai et al. (2022, arXiv:2111.07991). The locked tower takes no backward pass and no optimizer
state. The text tower goes on from its weights; ``:WEIGHTS --config.init_from_exclude='["^text/"]'``
starts it anew, as the paper does.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_lit")
    config.global_batch_size = 16_384
    config.total_steps = 55_000
    config.data.name = "webdataset:/data/cc12m/{00000..01242}.tar"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)"
    config.loss = {"name": "softmax_blockwise"}
    config.optim = common.adamw(1e-3, weight_decay=1e-4, warmup_steps=10_000)
    config.optim.freeze = [r"^image/"]
    config.optim.clip = {"name": "global_norm", "max_norm": 1.0}
    return config
