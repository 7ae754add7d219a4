"""MobileCLIP-B and MobileCLIP2-L/14 in open_clip's files: timm's ViT, CLIP's text tower."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, ImageConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess
from jaxclip.weights.families._layouts import TEXT_LAYOUT
from jaxclip.weights.families._open_clip_model import OtherTower, text_sizes
from jaxclip.weights.families._parts import count_blocks, square_grid
from jaxclip.weights.families.open_clip_fastvit import mobile_preprocess
from jaxclip.weights.families.open_clip_siglip import timm_blocks
from jaxclip.weights.mapping import (
    BATCH_AXIS,
    SAME,
    Entry,
    Layout,
    batch_norm,
    convolution,
    dense,
    norm,
)

_TRUNK = "visual.trunk"
_STEM = f"{_TRUNK}.patch_embed.backbone"
_TOKEN = Layout(lambda x: [x.reshape(-1)], lambda xs: xs[0][None, None])
_HEAD_WIDTH = 64
# Width, depth, stem and patches of the towers in timm's registry, with their image size.
_TIMM = {
    (768, 12, "conv_bn", 16, 224): "vit_base_mci_224",
    (1024, 24, "patch", 14, 224): "vit_large_patch14_clip_224",
}
_CLIP_TOWER = "vit_large_patch14_clip_224"  # norms as CLIP has them: one before, epsilon 1e-5


class OpenCLIPTimmViT(OtherTower):
    """``MobileCLIP-B``, ``MobileCLIP2-B`` and ``MobileCLIP2-L-14`` (arXiv:2311.17049, 2508.20691):
    Vision Transformers with a class token, and a bias in the projection.
    """

    example = "mobileclip_b"

    text_prefix = "text."

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        wanted = {f"{_TRUNK}.cls_token", f"{_TRUNK}.head.weight", "text.text_projection"}
        return wanted <= set(checkpoint.shapes)

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        width = shapes[f"{_TRUNK}.cls_token"][-1]
        has_stem = f"{_STEM}.0.conv.weight" in shapes
        rows = shapes[f"{_TRUNK}.pos_embed"][1]
        grid = square_grid(rows, 0 if has_stem else 1, _TRUNK)
        pre_norm = f"{_TRUNK}.norm_pre.weight" in shapes
        image: dict[str, Any] = {}
        if has_stem:
            convs = [
                shapes[f"{_STEM}.{i}.conv.weight"] for i in range(count_blocks(shapes, f"{_STEM}."))
            ]
            patch_size = math.prod(shape[-1] for shape in convs)
            image["stem"], image["stem_depth"] = "conv_bn", 0
            image["stem_widths"] = tuple(shape[0] for shape in convs)
        else:
            patch_size = shapes[f"{_TRUNK}.patch_embed.proj.weight"][-1]
            image["patch_bias"] = f"{_TRUNK}.patch_embed.proj.bias" in shapes
        return CLIPConfig(
            image=ImageConfig(
                image_size=grid * patch_size,
                patch_size=patch_size,
                width=width,
                depth=count_blocks(shapes, f"{_TRUNK}.blocks."),
                num_heads=max(1, width // _HEAD_WIDTH),
                mlp_dim=shapes[f"{_TRUNK}.blocks.0.mlp.fc1.weight"][0],
                pre_norm=pre_norm,
                norm_eps=1e-5 if pre_norm else 1e-6,
                projection="linear_bias",
                class_position=not has_stem,
                **image,
            ),
            text=text_sizes(checkpoint, "text."),
            embed_dim=shapes[f"{_TRUNK}.head.weight"][0],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def image_entries(image: Any) -> list[Entry]:
        found = [
            Entry(f"{_TRUNK}.cls_token", ("image/class_token",), _TOKEN),
            Entry(f"{_TRUNK}.pos_embed", ("image/positions",), BATCH_AXIS),
            *(_stem(image) if image.stem == "conv_bn" else _patches(image)),
        ]
        if image.pre_norm:
            found += norm(f"{_TRUNK}.norm_pre", "image/norm_pre")
        found += timm_blocks(image.depth)
        found += norm(f"{_TRUNK}.norm", "image/norm_post")
        found += dense(f"{_TRUNK}.head", "image/projection")
        return found

    layout: Mapping[str, Any] | None = {
        "image.kind": "vit",
        "image.pool": "cls",
        "image.positions": "learned",
        "image.num_registers": 0,
        "image.projection": "linear_bias",
        **TEXT_LAYOUT,
    }

    @staticmethod
    def vision_cfg(image: Any) -> dict[str, Any]:
        shape = (image.width, image.depth, image.stem, image.patch_size, image.image_size)
        if shape not in _TIMM:
            raise ValueError(
                f"model.image ({image.summary}) is no Vision Transformer of MobileCLIP's in timm: "
                f"{', '.join(_TIMM.values())}"
            )
        return {
            "timm_model_name": _TIMM[shape],
            "timm_model_pretrained": False,
            "timm_pool": "token",
            "timm_proj": None,
        }

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return mobile_preprocess(checkpoint, sizes)


def _stem(image: ImageConfig) -> Iterator[Entry]:
    channels, last = 3, len(image.stem_widths) - 1
    for stage, width in enumerate(image.stem_widths):
        size = 2 if stage else image.patch_size // 2**last
        at, to = f"{_STEM}.{stage}", f"image/stem_{stage}"
        yield Entry(f"{at}.conv.weight", (f"{to}_reduce/kernel",), convolution(size, channels))
        if stage == last:
            yield Entry(f"{at}.conv.bias", (f"{to}_reduce/bias",), SAME)
        else:
            yield from batch_norm(f"{at}.bn", f"{to}_norm")
        channels = width


def _patches(image: ImageConfig) -> Iterator[Entry]:
    at, to = f"{_TRUNK}.patch_embed.proj", "image/patch_embedding"
    yield Entry(f"{at}.weight", (f"{to}/kernel",), convolution(image.patch_size))
    if image.patch_bias:
        yield Entry(f"{at}.bias", (f"{to}/bias",), SAME)
