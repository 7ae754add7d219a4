"""Published sizes of models of patch sequences, captions and other people's text towers.

Plain data, of the form of :meth:`jaxclip.models.presets.CLIPConfig.from_dict`.
"""

from __future__ import annotations

import math
from typing import Any

Row = dict[str, Any]


def _naflex(width: int, depth: int, num_heads: int, mlp_dim: int) -> Row:
    """SigLIP 2 NaFlex (Tschannen et al. 2025): a table of 16 x 16 positions, 256 patches."""
    shape: Row = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim}
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


def _coca(image: Row, text: tuple[int, int, int], embed_dim: int, vocab_size: int = 49_408) -> Row:
    """CoCa in open_clip; ``text`` is (width, depth, heads)."""
    width, depth, num_heads = text
    return {
        "image": {**image, "mlp_dim": 4 * image["width"]},
        "text": {
            "vocab_size": vocab_size,
            "context_length": 76,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": 4 * width,
            "pool": "cls",
        },
        "embed_dim": embed_dim,
    }


def _roberta(
    image: Row, text: tuple[int, int, int], embed_dim: int, vocab_size: int = 250_002
) -> Row:
    """open_clip's models with a RoBERTa as text tower; ``text`` is (width, depth, heads)."""
    width, depth, num_heads = text
    return {
        "image": {"mlp_dim": 4 * image["width"], **image},
        "text": {
            "kind": "roberta",
            "vocab_size": vocab_size,
            "context_length": 77,
            "num_positions": 514,
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_dim": 4 * width,
            "causal": False,
            "pool": "mean",
            "projection": "mlp",
            "pad_id": 1,
        },
        "embed_dim": embed_dim,
    }


_POOLED = {"pool": "queries", "num_queries": 256, "pool_heads": 8}
_B = {"width": 768, "depth": 12, "num_heads": 12}
_H = {"width": 1280, "depth": 32, "num_heads": 16}
_L = {"width": 1024, "depth": 24, "num_heads": 16}

ROWS: dict[str, Row] = {
    "siglip2_b16_naflex": _naflex(768, 12, 12, 3072),
    "siglip2_so400m_16_naflex": _naflex(1152, 27, 16, 4304),
    "coca_vit_b32": _coca({**_B, **_POOLED, "patch_size": 32}, (512, 12, 8), 512),
    "coca_vit_l14": _coca({**_L, **_POOLED, "patch_size": 14}, (768, 12, 12), 768),
    "roberta_vit_b32": _roberta(
        {**_B, "patch_size": 32, "activation": "quick_gelu"}, (768, 12, 12), 512, 50_265
    ),
    "xlm_roberta_base_vit_b32": _roberta({**_B, "patch_size": 32}, (768, 12, 12), 512),
    "xlm_roberta_large_vit_h14": _roberta({**_H, "patch_size": 14}, (1024, 24, 16), 1024),
    "coca_base": _coca({**_B, "image_size": 288, "patch_size": 18}, (768, 12, 12), 512, 64_000),
}
