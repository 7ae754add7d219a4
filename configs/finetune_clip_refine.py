"""One short epoch that closes the gap between pictures and texts (CLIP-Refine).

    jaxclip train --config configs/finetune_clip_refine.py:ViT-B-32.pt --workdir runs/refined \
        --config.data.name=/data/coco/1.0.0

Yamaguchi et al. (2025, arXiv:2504.12717): raw embeddings are drawn to common random vectors, while
the model before keeps teaching its similarities.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the weights to start from."""
    config = common.start_from(arg, "finetune_clip_refine")
    config.global_batch_size = 512
    config.total_steps = 231  # one epoch of COCO's pictures
    config.data.name = "/data/coco/1.0.0"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)"
    config.objective = [{"name": "clip_refine"}]
    config.teacher = {"kind": "frozen", "path": arg}
    config.optim = common.adamw(1e-6, weight_decay=0.1, warmup_steps=0)
    return config
