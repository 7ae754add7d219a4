"""Fit a linear head first, then everything (LP-FT), then mix (WiSE-FT).

    jaxclip train --config configs/finetune_lp_ft.py:lp:ViT-B-16.pt --workdir runs/lp
    jaxclip train --config configs/finetune_lp_ft.py:ft:runs/lp --workdir runs/ft
    jaxclip weights wise-ft --before runs/lp --after runs/ft --alpha 0.5 --to weights/mixed

Kumar et al. (2022, arXiv:2202.10054): a head that fits keeps fine-tuning from distorting the
features. The second phase takes the towers and the head of the first; both are mixed, the head too.
The paper fits the head by L-BFGS (``jaxclip eval --task linear_probe`` does that); here it is
trained.
"""

import common
from ml_collections import ConfigDict

EPOCH = 1_281_167 // 512  # steps


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is ``"lp:WEIGHTS"`` or ``"ft:WORKDIR"``, that of the first phase."""
    phase, _, weights = arg.partition(":")
    if phase not in ("lp", "ft"):
        raise ValueError(f"configs/finetune_lp_ft.py:{arg}: begin with 'lp:' or 'ft:'")
    config = common.start_from(weights, f"finetune_lp_ft.py:{phase}")
    config.global_batch_size = 512
    config.data.name = "/data/imagenet/1.0.0"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)|flip"
    config.objective = [{"name": "class_head", "num_classes": 1000, "label_smoothing": 0.0}]
    if phase == "lp":
        config.total_steps = 10 * EPOCH
        config.optim = common.adamw(1e-3, weight_decay=0.0, warmup_steps=0)
        config.optim.freeze = [r"^(image|text)/", r"^logit_"]
    else:
        config.total_steps = 10 * EPOCH
        config.optim = common.adamw(1e-5, weight_decay=0.1, warmup_steps=500)
        config.optim.freeze = [r"^text/", r"^logit_"]
    return config
