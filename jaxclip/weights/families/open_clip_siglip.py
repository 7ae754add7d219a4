"""SigLIP in open_clip's files: a timm image tower, open_clip's text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess
from jaxclip.weights.families._parts import HALF, count_blocks, read_number, square_grid
from jaxclip.weights.families.open_clip import blocks as open_clip_blocks
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import (
    BATCH_AXIS,
    SAME,
    SCALAR,
    Entry,
    convolution,
    dense,
    fused_attention,
    norm,
)

_TRUNK = "visual.trunk"
# Width of a head: 64, 72 in So400m and 96 in g-opt.
_HEAD_WIDTH = {1152: 72, 1536: 96}
# Image towers of timm's registry that compute GELU's tanh approximation. All others of SigLIP and
# SigLIP 2 compute the exact one, also where big_vision trained with tanh: what timm does with a
# file is what open_clip's users get, and what we do with it, too.
_TANH_TOWERS = (
    "vit_base_patch32_siglip_256",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384",
    "vit_so400m_patch16_siglip_512",
    "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
)
_TIMM_WIDTHS = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}
_SIGLIP2_VOCABULARY = 256_000


class OpenCLIPSigLIP(Family):
    """``ViT-*-SigLIP`` of open_clip (Zhai et al. 2023, arXiv:2303.15343)."""

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        return {f"{_TRUNK}.attn_pool.latent", "text.text_projection.weight"} <= set(
            checkpoint.shapes
        )

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        width, _, patch_size, _ = shapes[f"{_TRUNK}.patch_embed.proj.weight"]
        grid = square_grid(shapes[f"{_TRUNK}.pos_embed"][1], 0, _TRUNK)
        vocab_size, text_width = shapes["text.token_embedding.weight"]
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision, text = dict(config.get("vision_cfg") or {}), dict(config.get("text_cfg") or {})
        size = grid * patch_size
        return CLIPConfig(
            image=ImageConfig(
                image_size=size,
                patch_size=patch_size,
                width=width,
                depth=count_blocks(shapes, f"{_TRUNK}.blocks."),
                num_heads=max(1, width // _HEAD_WIDTH.get(width, 64)),
                mlp_dim=shapes[f"{_TRUNK}.blocks.0.mlp.fc1.weight"][0],
                pool="map",
                pre_norm=False,
                patch_bias=True,
                projection="none",
                activation=_image_activation(vision, width, patch_size, size),
                norm_eps=1e-6,
            ),
            text=TextConfig(
                vocab_size=vocab_size,
                context_length=shapes["text.positional_embedding"][0],
                width=text_width,
                depth=count_blocks(shapes, "text.transformer.resblocks."),
                num_heads=read_number(
                    text, "heads", max(1, text_width // _HEAD_WIDTH.get(text_width, 64))
                ),
                mlp_dim=shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
                causal=False,
                pool="final",
                mask_padding=False,
                projection="linear_bias",
                activation=_text_activation(text, vocab_size),
                norm_eps=_text_norm_eps(text),
            ),
            embed_dim=width,
            logit_scale_init=math.log(10.0),
            logit_bias_init=-10.0,
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        pool, to = f"{_TRUNK}.attn_pool", "image/attention_pool"
        return [
            Entry(
                f"{_TRUNK}.patch_embed.proj.weight",
                ("image/patch_embedding/kernel",),
                convolution(sizes.image.patch_size),
            ),
            Entry(f"{_TRUNK}.patch_embed.proj.bias", ("image/patch_embedding/bias",), SAME),
            Entry(f"{_TRUNK}.pos_embed", ("image/positions",), BATCH_AXIS),
            *_timm_blocks(sizes.image.depth),
            *norm(f"{_TRUNK}.norm", "image/norm_post"),
            Entry(f"{pool}.latent", (f"{to}/probe",), SAME),
            *dense(f"{pool}.q", f"{to}/attention/query"),
            *fused_attention(
                f"{pool}.kv.weight", f"{pool}.kv.bias", f"{to}/attention", ("key", "value")
            ),
            *dense(f"{pool}.proj", f"{to}/attention/out"),
            *norm(f"{pool}.norm", f"{to}/norm"),
            *dense(f"{pool}.mlp.fc1", f"{to}/mlp/up"),
            *dense(f"{pool}.mlp.fc2", f"{to}/mlp/down"),
            Entry("text.token_embedding.weight", ("text/token_embedding/embedding",), SAME),
            Entry("text.positional_embedding", ("text/positions",), SAME),
            *open_clip_blocks("text.transformer.resblocks", "text", sizes.text.depth),
            *norm("text.ln_final", "text/norm_post"),
            *dense("text.text_projection", "text/projection"),
            Entry("logit_scale", ("logit_scale",), SCALAR),
            Entry("logit_bias", ("logit_bias",), SCALAR),
        ]

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, HALF, HALF, sizes, {"kind": "siglip"})


def _image_activation(vision: Mapping[str, Any], width: int, patch: int, size: int) -> str:
    """What timm's tower of that name computes; without a name, of the tower of that shape."""
    shape = f"vit_{_TIMM_WIDTHS.get(width, '?')}_patch{patch}_siglip_{size}"
    name = str(vision.get("timm_model_name", shape)).split(".")[0]
    return "gelu_tanh" if name in _TANH_TOWERS else "gelu"


def _text_activation(text: Mapping[str, Any], vocab_size: int) -> str:
    """``text_cfg.act_kwargs``; without a ``text_cfg``, as open_clip's configurations have it.

    Raises:
      ValueError: an approximation that is none of torch's.
    """
    default = {"approximate": "tanh"} if not text and vocab_size == _SIGLIP2_VOCABULARY else {}
    given = (text.get("act_kwargs") or {}) if text else default
    known = {"none": "gelu", "tanh": "gelu_tanh"}
    approximate = given.get("approximate", "none")
    if approximate not in known or set(given) - {"approximate"}:
        raise ValueError(f"text_cfg.act_kwargs={given!r}; known: approximate={', '.join(known)}")
    return known[approximate]


def _text_norm_eps(text: Mapping[str, Any]) -> float:
    default = {} if text else {"eps": 1e-6}
    return float((text.get("norm_kwargs") or default).get("eps", 1e-5))


def _timm_blocks(depth: int) -> Iterator[Entry]:
    for index in range(depth):
        at, to = f"{_TRUNK}.blocks.{index}", f"image/blocks_{index}"
        yield from norm(f"{at}.norm1", f"{to}/attention_norm")
        yield from fused_attention(
            f"{at}.attn.qkv.weight",
            f"{at}.attn.qkv.bias",
            f"{to}/attention",
            ("query", "key", "value"),
        )
        yield from dense(f"{at}.attn.proj", f"{to}/attention/out")
        yield from norm(f"{at}.norm2", f"{to}/mlp_norm")
        yield from dense(f"{at}.mlp.fc1", f"{to}/mlp/up")
        yield from dense(f"{at}.mlp.fc2", f"{to}/mlp/down")
