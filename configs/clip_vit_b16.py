"""CLIP ViT-B/16 pre-training as open_clip trains it on LAION-400M, for a pod slice.

Point ``data.name`` at your own records (``jaxclip data import`` writes them, WebDataset tars are
read in place):

    jaxclip train --config configs/clip_vit_b16.py --workdir gs://…/b16 \
        --config.data.name='webdataset:/data/laion/{00000..41455}.tar'

``--dry_run`` does without: it builds, compiles and does one small step on made-up data.
Hyperparameters: Radford et al. (2021), table 19; batch and learning rate as open_clip's ViT-B/16.

As it stands the step fits a v5e:4x4 slice (docs/scale.md); with more memory a chip, ``remat`` may
be lighter: ``jaxclip plan --config configs/clip_vit_b16.py --topology …`` tells.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is not used."""
    del arg
    config = ConfigDict()
    config.seed = 0
    config.global_batch_size = 16_384
    config.total_steps = 780_000  # 12.8 billion pairs: 32 epochs of 400 million

    config.model = {"preset": "vit_b16"}
    config.tokenizer = {"kind": "clip", "context_length": 77}
    config.data = {
        "name": "webdataset:/data/laion400m/{00000..41455}.tar",
        "image_size": 224,
        "image_ops": "random_resized_crop(0.9, 1.0)",
        "eval_image_ops": "resize_small|center_crop",
        # Channel statistics of CLIP's own training set, as OpenAI released them.
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "cache_decoded_mb": 0,
        "prefetch": 4,
    }

    config.loss = {"name": "softmax_blockwise"}
    config.optim = common.adamw(1e-3, weight_decay=0.2, warmup_steps=2000)
    config.optim.clip = common.zclip()

    config.precision = {"compute_dtype": "bfloat16"}
    config.remat = "full"
    config.scan_layers = True
    config.attention_implementation = "fused"  # on TPUs; elsewhere XLA's own ("cudnn" on NVIDIA)
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.sharding = "dp"
    config.checkpoint = {"every_steps": 2000, "keep_last": 3}
    config.log_every_steps = 50
    return config
