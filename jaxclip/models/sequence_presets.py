"""Published sizes of models of patch sequences, captions and other people's text towers.

Plain data, of the form of :meth:`jaxclip.models.presets.CLIPConfig.from_dict`.
"""

from __future__ import annotations

import math
from typing import Any

Row = dict[str, Any]


def _naflex(width: int, depth: int, num_heads: int, mlp_dim: int) -> Row:
    """SigLIP 2 NaFlex (Tschannen et al. 2025): a table of 16 x 16 positions, 256 patches."""
    shape = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim}
    shape |= {"activation": "gelu_tanh", "norm_eps": 1e-6}
    image = {**shape, "image_size": 256, "patch_size": 16, "max_patches": 256, "pool": "map"}
    text = {**shape, "vocab_size": 256_000, "context_length": 64, "causal": False, "pool": "final"}
    return {
        "image": {**image, "pre_norm": False, "patch_bias": True, "projection": "none"},
        "text": {**text, "mask_padding": False, "projection": "linear_bias"},
        "embed_dim": width,
        "logit_scale_init": math.log(10.0),
        "logit_bias_init": -10.0,
    }


ROWS: dict[str, Row] = {
    "siglip2_b16_naflex": _naflex(768, 12, 12, 3072),
    "siglip2_so400m_16_naflex": _naflex(1152, 27, 16, 4304),
}
