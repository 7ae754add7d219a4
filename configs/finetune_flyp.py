"""Fine-tune on classes with the pre-training loss (FLYP), and mix with the start afterwards.

    jaxclip train --config configs/finetune_flyp.py:ViT-B-16.pt --workdir runs/flyp \
        --config.data.name=/data/imagenet/1.0.0
    jaxclip weights wise-ft --before ViT-B-16.pt --after runs/flyp --alpha 0.5 --to weights/mixed

Goyal et al. (2023, arXiv:2212.00638): both towers, CLIP's loss on pictures and sentences of their
class names, which are the records' captions; a low learning rate.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_flyp")
    config.global_batch_size = 512
    config.total_steps = 25_000  # ten epochs of ImageNet
    config.data.name = "/data/imagenet/1.0.0"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)"
    config.objective = [{"name": "flyp", "templates": "a photo of a {}."}]
    config.optim = common.adamw(1e-5, weight_decay=0.1, warmup_steps=500)
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    return config
