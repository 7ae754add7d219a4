"""Texts of up to 248 tokens, with primary-component matching for short ones (Long-CLIP).

    jaxclip train --config configs/finetune_long_clip.py:ViT-B-16.pt --workdir runs/long \
        --config.data.name='webdataset:/data/sharegpt4v/{00000..00123}.tar'

Zhang et al. (2024, arXiv:2403.15378): positions are stretched, of which the first 20 stay as they
are; the longest caption of a record is contrasted with the picture, its first sentence with the
picture's 32 primary components. The paper also holds these first 20 rows during training; here they
move, at a learning rate of 1e-6.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_long_clip")
    config.global_batch_size = 1024  # 128 on each of eight devices
    config.total_steps = 2400  # two epochs of 1.2 million pictures
    config.data.name = "webdataset:/data/sharegpt4v/{00000..00123}.tar"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)"
    config.tokenizer.context_length = 248
    config.model.text.context_length = 248
    config.objective = [{"name": "long_clip", "components": 32}]
    config.optim = common.adamw(1e-6, weight_decay=1e-2, warmup_steps=200)
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    return config
