"""Published sizes as changes of another preset: name -> (preset, fields).

EVA-CLIP (Sun et al., 2023, arXiv:2303.15389), EVA-CLIP-8B and 18B (2024, arXiv:2402.04252),
Perception Encoder (Bolya et al., 2025, arXiv:2504.13181), CLIPA (Li et al., 2023,
arXiv:2305.07017), Long-CLIP (Zhang et al., 2024, arXiv:2403.15378), Alpha-CLIP (Sun et al., 2024,
arXiv:2312.03818).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Changes = dict[str, Any]

# Image towers alone. `jaxclip.weights` tells a file's architecture by these, too.
_EVA: Changes = {
    "pre_norm": False,
    "patch_bias": True,
    "norm_eps": 1e-6,
    "projection": "linear_bias",
}
_EVA02: Changes = _EVA | {
    "qkv_bias": "qv",
    "mlp": "gated",
    "activation": "silu",
    "sub_norm": True,
    "rope": "yx",
    "rope_grid": 16,
}
_PE: Changes = {
    "pool": "map",
    "class_token": True,
    "pool_prefix": True,
    "pool_heads": 8,
    "projection": "linear_bias",
    "rope": "xy",
    "rope_offset": 1.0,
}


def _shape(patch: int, size: int, width: int, depth: int, heads: int, mlp_dim: int) -> Changes:
    return {
        "patch_size": patch,
        "image_size": size,
        "width": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_dim": mlp_dim,
    }


# By the names that timm's registry has for them.
TIMM_TOWERS: Mapping[str, Changes] = {
    "eva02_base_patch16_clip_224": _EVA02 | _shape(16, 224, 768, 12, 12, 2048),
    "eva02_large_patch14_clip_224": _EVA02 | _shape(14, 224, 1024, 24, 16, 2730),
    "eva02_large_patch14_clip_336": _EVA02 | _shape(14, 336, 1024, 24, 16, 2730),
    "eva02_enormous_patch14_clip_224": _EVA
    | {"qkv_bias": "qv", "norm_place": "post"}
    | _shape(14, 224, 1792, 64, 16, 15360),
    "eva_giant_patch14_224": _EVA | {"qkv_bias": "qv"} | _shape(14, 224, 1408, 40, 16, 6144),
    "eva_giant_patch14_clip_224": _EVA | {"qkv_bias": "qv"} | _shape(14, 224, 1408, 40, 16, 6144),
    "vit_pe_core_tiny_patch16_384": _PE | {"rope_grid": 24} | _shape(16, 384, 192, 12, 3, 768),
    "vit_pe_core_small_patch16_384": _PE | {"rope_grid": 24} | _shape(16, 384, 384, 12, 6, 1536),
    "vit_pe_core_base_patch16_224": _PE | {"rope_grid": 14} | _shape(16, 224, 768, 12, 12, 3072),
    "vit_pe_core_large_patch14_336": _PE | {"rope_grid": 24} | _shape(14, 336, 1024, 24, 16, 4096),
    "vit_pe_core_gigantic_patch14_448": _PE
    | {"class_token": False, "pool_prefix": False, "pool_mlp_dim": 6144}
    | {"rope_offset": 0.0, "rope_grid": 32}
    | _shape(14, 448, 1536, 50, 16, 8960),
    "vit_medium_patch16_gap_256": {
        "pool": "mean",
        "pre_norm": False,
        "patch_bias": True,
        "norm_eps": 1e-6,
        "qkv_bias": "none",
        "layer_scale": 1e-6,
        **_shape(16, 256, 512, 12, 8, 2048),
    },
}


_RMS: Changes = _EVA | {"norm": "rms", "qkv_bias": "none", "projection": "linear"}
# EVA-CLIP-8B and 18B, which timm does not have.
EVA_RMS_TOWERS: Mapping[str, Changes] = {
    "eva_8b": _RMS | _shape(14, 224, 4096, 32, 32, 20_480),
    "eva_18b": _RMS | {"norm_place": "post"} | _shape(14, 224, 5120, 48, 40, 25_600),
}


def _text(width: int, depth: int, heads: int, **more: Any) -> Changes:
    return {"width": width, "depth": depth, "num_heads": heads, "mlp_dim": 4 * width, **more}


def _timm(name: str, text: Changes, embed_dim: int) -> tuple[str, Changes]:
    return "vit_b16", {"image": TIMM_TOWERS[name], "text": text, "embed_dim": embed_dim}


_CLIPA_IMAGE: Changes = {
    "pool": "mean",
    "class_token": True,
    "pre_norm": False,
    "norm_after_pool": True,
}
_CLIPA_TEXT: Changes = {
    "causal": False,
    "pool": "final",
    "mask_padding": False,
    "vocab_size": 32_000,
}


def _clipa(base: str, image_size: int, context_length: int) -> tuple[str, Changes]:
    text = {**_CLIPA_TEXT, "context_length": context_length}
    return base, {"image": {**_CLIPA_IMAGE, "image_size": image_size}, "text": text}


VARIANTS: Mapping[str, tuple[str, Changes]] = {
    "eva01_g14": _timm("eva_giant_patch14_224", _text(768, 12, 12), 1024),
    "eva01_g14_plus": _timm("eva_giant_patch14_224", _text(1024, 24, 16), 1024),
    "eva02_b16": _timm("eva02_base_patch16_clip_224", _text(512, 12, 8), 512),
    "eva02_l14": _timm("eva02_large_patch14_clip_224", _text(768, 12, 12), 768),
    "eva02_l14_336": _timm("eva02_large_patch14_clip_336", _text(768, 12, 12), 768),
    "eva02_e14": _timm("eva02_enormous_patch14_clip_224", _text(1024, 24, 16), 1024),
    "eva02_e14_plus": _timm("eva02_enormous_patch14_clip_224", _text(1280, 32, 20), 1024),
    **{
        name: (
            "vit_b16",
            {"image": tower, "text": _text(1280, 32, 20), "embed_dim": embed_dim},
        )
        for (name, tower), embed_dim in zip(EVA_RMS_TOWERS.items(), (1280, 1536), strict=True)
    },
    "pe_core_t16": _timm("vit_pe_core_tiny_patch16_384", _text(512, 12, 8, context_length=32), 512),
    "pe_core_s16": _timm(
        "vit_pe_core_small_patch16_384", _text(512, 12, 8, context_length=32), 512
    ),
    "pe_core_b16": _timm(
        "vit_pe_core_base_patch16_224", _text(1024, 24, 16, context_length=32), 1024
    ),
    "pe_core_l14": _timm(
        "vit_pe_core_large_patch14_336", _text(1024, 24, 16, context_length=32), 1024
    ),
    "pe_core_bigg14": _timm(
        "vit_pe_core_gigantic_patch14_448", _text(1280, 24, 20, context_length=72), 1280
    ),
    "clipa_l14": _clipa("vit_l14", 224, 32),
    "clipa_l14_336": _clipa("vit_l14", 336, 32),
    "clipa_h14": _clipa("vit_h14", 224, 32),
    "clipa_h14_336": _clipa("vit_h14", 336, 32),
    "clipa_bigg14": _clipa("vit_bigg14", 224, 32),
    "clipa_bigg14_336": _clipa("vit_bigg14", 336, 32),
    "longclip_b16": ("vit_b16_quickgelu", {"text": {"context_length": 248}}),
    "longclip_l14": ("vit_l14_quickgelu", {"text": {"context_length": 248}}),
    "alphaclip_b16": ("vit_b16_quickgelu", {"image": {"alpha": True}}),
    "alphaclip_l14": ("vit_l14_quickgelu", {"image": {"alpha": True}}),
    "alphaclip_l14_336": ("vit_l14_336_quickgelu", {"image": {"alpha": True}}),
}
