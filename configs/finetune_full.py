"""Fine-tune a whole image tower for classification, with layer-wise learning rates (FT-CLIP).

    jaxclip train --config configs/finetune_full.py:ViT-B-16.pt --workdir runs/full \
        --config.data.name=/data/imagenet/1.0.0

Dong et al. (2022, arXiv:2212.06138), ViT-B/16 on ImageNet: a fresh norm and linear layer on the
mean of the patches' tokens, the patch embedding frozen, layer i of L at ``0.6^(L + 1 - i)`` of the
learning rate, no decay of weights for vectors and positions. The head's classes are
``objective[0].num_classes``. ViT-L/14: layer_decay 0.65, learning rate 4e-4, 30 epochs, 5 to warm
up.
"""

import common
from ml_collections import ConfigDict

EPOCH = 1_281_167 // 2048  # steps


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_full")
    config.global_batch_size = 2048
    config.total_steps = 50 * EPOCH
    config.data.name = "/data/imagenet/1.0.0"
    config.data.image_ops = "random_resized_crop(0.08, 1.0)|flip|random_erasing(p=0.25)"
    config.objective = [
        {"name": "class_head", "num_classes": 1000, "features": "image_tokens"},
    ]
    config.optim = common.adamw(6e-4, weight_decay=0.05, warmup_steps=10 * EPOCH)
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.layer_decay = 0.6
    # Nothing of the text tower is used.
    config.optim.freeze = [r"^text/", r"^logit_", r"^image/patch_embedding/", r"^image/projection/"]
    config.ema_decay = 0.9998
    return config
