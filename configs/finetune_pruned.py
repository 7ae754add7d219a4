"""Bring a pruned model back, with the model that it was as its teacher (MoPE-CLIP's second stage).

    jaxclip weights prune --from runs/mine --to weights/small --score mope \
        --task 'retrieval split=val' --keep_heads 0.5 --keep_units 0.5
    jaxclip train --config configs/finetune_pruned.py:weights/small --workdir runs/small \
        --config.teacher.path=runs/mine --config.data.name='webdataset:/data/cc12m/{0..1242}.tar'

Lin et al. (2024, arXiv:2403.07839): the contrastive loss, and the divergence of the similarities of
a batch from the teacher's. Their third part, on hidden states, is left out.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is the pruned workdir."""
    config = common.start_from(arg, "finetune_pruned")
    config.global_batch_size = 1024
    config.total_steps = 20_000
    config.data.name = "webdataset:/data/cc12m/{00000..01242}.tar"
    config.data.image_ops = "random_resized_crop(0.9, 1.0)"
    config.teacher = {"kind": "frozen"}
    config.objective = [
        {"name": "contrastive"},
        {"name": "affinity", "scale": None, "teacher_scale": None},
    ]
    config.optim = common.adamw(2e-4, weight_decay=0.2, warmup_steps=1000)
    config.optim.clip = common.zclip(max_norm=None)
    return config
