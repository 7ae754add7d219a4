"""SigLIP ViT-B/16 pre-training (Zhai et al., 2023): sigmoid loss, attention pooling, 32 k batch.

As :mod:`clip_vit_b16`, but with the sigmoid loss, which needs no normalisation over the batch, the
vocabulary that comes with SigLIP's weights (``tokenizer.path``: ``spiece.model``, or its folder),
and b2 = 0.95, which the paper found to keep training stable at large batches (section 4.6). As it
stands the step fits a v5e:4x8 slice.
"""

import common
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The experiment; ``arg`` is not used."""
    del arg
    config = ConfigDict()
    config.seed = 0
    config.global_batch_size = 32_768
    config.total_steps = 280_000  # 9 billion pairs, as in the paper

    config.model = {"preset": "siglip_b16"}
    config.tokenizer = {"kind": "siglip", "path": "", "context_length": 64}
    config.data = {
        "name": "webdataset:/data/webli/{00000..99999}.tar",
        "image_size": 224,
        "image_ops": "resize",
        "eval_image_ops": "resize",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "cache_decoded_mb": 0,
        "prefetch": 4,
    }

    config.loss = {"name": "sigmoid_blockwise"}
    config.optim = common.adamw(1e-3, weight_decay=1e-4, warmup_steps=20_000)
    config.optim.b2 = 0.95
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
