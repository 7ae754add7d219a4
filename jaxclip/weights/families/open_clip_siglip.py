"""SigLIP in open_clip's files: a timm image tower, open_clip's text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.data.siglip_tokens import kind_of
from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import SIGLIP_LAYOUT, open_clip_preprocess
from jaxclip.weights.families._open_clip_text import read_text, text_cfg, text_entries
from jaxclip.weights.families._parts import HALF, count_blocks, square_grid
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.families.open_clip_timm import attention_pool
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
# Depth, heads and MLP of timm's towers by width, with the patches and sizes that are registered.
_TIMM_TOWERS = {
    768: (12, 12, 3072, {(32, 256), (16, 224), (16, 256), (16, 384), (16, 512)}),
    1024: (24, 16, 4096, {(16, 256), (16, 384), (16, 512)}),
    1152: (27, 16, 4304, {(14, 224), (14, 378), (16, 256), (16, 384), (16, 512)}),
    1536: (40, 16, 6144, {(16, 256), (16, 384)}),
}
_TIMM_WIDTHS = {768: "base", 1024: "large", 1152: "so400m", 1536: "giantopt"}
_SIGLIP2_VOCABULARY = 256_000


class OpenCLIPSigLIP(Family):
    """``ViT-*-SigLIP`` of open_clip (Zhai et al. 2023, arXiv:2303.15343)."""

    example = "siglip_b16"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = checkpoint.shapes
        siglip = {f"{_TRUNK}.attn_pool.latent", "text.token_embedding.weight", "logit_bias"}
        return siglip <= set(names) and f"{_TRUNK}.head.weight" not in names

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        width, _, patch_size, _ = shapes[f"{_TRUNK}.patch_embed.proj.weight"]
        grid = square_grid(shapes[f"{_TRUNK}.pos_embed"][1], 0, _TRUNK)
        vocab_size, text_width = shapes["text.token_embedding.weight"]
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision, text = dict(config.get("vision_cfg") or {}), dict(config.get("text_cfg") or {})
        size = grid * patch_size
        siglip2 = vocab_size == _SIGLIP2_VOCABULARY
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
            text=read_text(
                shapes,
                {**_text_default(siglip2, bool(text)), **text},
                prefix="text.",
                head_width=_HEAD_WIDTH.get(text_width, 64),
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
            *timm_blocks(sizes.image.depth),
            *norm(f"{_TRUNK}.norm", "image/norm_post"),
            *attention_pool(pool, to),
            *text_entries(sizes, "text."),
            Entry("logit_scale", ("logit_scale",), SCALAR),
            Entry("logit_bias", ("logit_bias",), SCALAR),
        ]

    layout = SIGLIP_LAYOUT
    weights_file = "open_clip_model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        text = {
            **text_cfg(sizes.text, ids),
            "pad_id": ids.pad,
            "eos_id": ids.end,
            "norm_kwargs": {"eps": sizes.text.norm_eps},
            "act_kwargs": {
                "approximate": "tanh" if sizes.text.activation == "gelu_tanh" else "none"
            },
        }
        vision_cfg = {
            "image_size": sizes.image.image_size,
            "timm_model_name": _timm_name(sizes.image),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        }
        model_cfg = {
            "embed_dim": sizes.embed_dim,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": vision_cfg,
            "text_cfg": text,
        }
        cfg = open_clip_preprocess(preprocess, sizes.image.image_size)
        return {"open_clip_config.json": {"model_cfg": model_cfg, "preprocess_cfg": cfg}}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(
            checkpoint.config, HALF, HALF, sizes, {"kind": kind_of(sizes.text.vocab_size)}
        )


def _text_default(siglip2: bool, given: bool) -> Mapping[str, Any]:
    """What a ``text_cfg`` may leave out: all of it, as open_clip's own configurations have it."""
    always = {"no_causal_mask": True, "pool_type": "last"}
    approximate = "tanh" if siglip2 else "none"
    alone = {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": approximate}}
    return always if given else always | alone


def _image_activation(vision: Mapping[str, Any], width: int, patch: int, size: int) -> str:
    """What timm's tower of that name computes; without a name, of the tower of that shape."""
    shape = f"vit_{_TIMM_WIDTHS.get(width, '?')}_patch{patch}_siglip_{size}"
    name = str(vision.get("timm_model_name", shape)).split(".")[0]
    return "gelu_tanh" if name in _TANH_TOWERS else "gelu"


def _timm_name(image: ImageConfig) -> str:
    """The name of a tower in timm's registry.

    Raises:
      ValueError: there is none of this shape; open_clip's configurations can't describe one.
    """
    depth, heads, mlp_dim, known = _TIMM_TOWERS.get(image.width, (0, 0, 0, set()))
    shape = {"depth": depth, "num_heads": heads, "mlp_dim": mlp_dim}
    if not known:
        raise ValueError(
            f"model.image.width={image.width} is of no SigLIP tower in timm, which have "
            f"{', '.join(map(str, _TIMM_TOWERS))}; export it as hf_siglip"
        )
    for key, value in shape.items():
        if getattr(image, key) != value:
            raise ValueError(
                f"model.image.{key}={getattr(image, key)} is of no SigLIP tower in timm, which has "
                f"{value} at width {image.width}; export it as hf_siglip"
            )
    if (image.patch_size, image.image_size) not in known:
        raise ValueError(
            f"model.image.image_size={image.image_size} with patch_size={image.patch_size} is of "
            "no SigLIP tower in timm; export it as hf_siglip"
        )
    name = _TIMM_WIDTHS[image.width]
    return f"vit_{name}_patch{image.patch_size}_siglip_{image.image_size}"


def timm_blocks(depth: int) -> Iterator[Entry]:
    """Blocks of timm's Vision Transformer."""
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
