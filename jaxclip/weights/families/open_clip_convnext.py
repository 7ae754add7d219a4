"""OpenCLIP's ConvNeXts: a timm image tower, CLIP's text tower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxclip.models.image_towers.convnext import ConvNeXtConfig
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess
from jaxclip.weights.families._layouts import TEXT_LAYOUT
from jaxclip.weights.families._open_clip_model import OtherTower, text_sizes
from jaxclip.weights.families._parts import CLIP_MEAN, CLIP_STD, count_blocks, image_size
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import SAME, Entry, conv, convolution, dense, norm

_TRUNK, _HEAD = "visual.trunk", "visual.head"
# timm's towers by the width of their first stage and the depth of the third.
_TIMM = {
    (96, 9): "convnext_tiny",
    (96, 27): "convnext_small",
    (128, 27): "convnext_base",
    (192, 27): "convnext_large",
    (256, 27): "convnext_xlarge",
    (384, 30): "convnext_xxlarge",
}
# Epsilon of timm's layer norms is 1e-6, but in this tower.
_XXLARGE = "convnext_xxlarge"


class OpenCLIPConvNeXt(OtherTower):
    """``convnext_*`` of open_clip (Cherti et al. 2023; Liu et al. 2022, arXiv:2201.03545)."""

    example = "convnext_base_w"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        return {f"{_TRUNK}.stages.0.blocks.0.conv_dw.weight", "text_projection"} <= set(
            checkpoint.shapes
        )

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision = dict(config.get("vision_cfg") or {})
        stages = range(count_blocks(shapes, f"{_TRUNK}.stages."))
        depths = tuple(count_blocks(shapes, f"{_TRUNK}.stages.{i}.blocks.") for i in stages)
        widths = tuple(shapes[f"{_TRUNK}.stages.{i}.blocks.0.conv_dw.weight"][0] for i in stages)
        heads = {"linear": f"{_HEAD}.proj.weight", "mlp": f"{_HEAD}.mlp.fc2.weight"}
        projection = next((kind for kind, name in heads.items() if name in shapes), None)
        if projection is None:
            raise ValueError(
                f"timm_proj={vision.get('timm_proj')!r} is not supported; known: linear, mlp"
            )
        third = depths[2] if len(depths) > 2 else 0
        name = str(vision.get("timm_model_name") or _TIMM.get((widths[0], third), "")).split(".")[0]
        return CLIPConfig(
            image=ConvNeXtConfig(
                image_size=image_size(checkpoint, 256),
                depths=depths,
                widths=widths,
                norm_eps=1e-5 if name == _XXLARGE else 1e-6,
                projection=projection,
            ),
            text=text_sizes(checkpoint),
            embed_dim=shapes[heads[projection]][0],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def image_entries(image: Any) -> list[Entry]:
        found = [
            Entry(f"{_TRUNK}.stem.0.weight", ("image/stem/embedding/kernel",), convolution(4)),
            Entry(f"{_TRUNK}.stem.0.bias", ("image/stem/embedding/bias",), SAME),
            *norm(f"{_TRUNK}.stem.1", "image/stem/norm"),
        ]
        number = 0
        for stage, depth in enumerate(image.depths):
            at, to = f"{_TRUNK}.stages.{stage}", f"image/blocks_{number}"
            if stage:
                layout = convolution(2, image.widths[stage - 1])
                found += norm(f"{at}.downsample.0", f"{to}/downsample_norm")
                found += [
                    Entry(f"{at}.downsample.1.weight", (f"{to}/downsample/kernel",), layout),
                    Entry(f"{at}.downsample.1.bias", (f"{to}/downsample/bias",), SAME),
                ]
            for index in range(depth):
                found += _block(f"{at}.blocks.{index}", f"image/blocks_{number}")
                number += 1
        found += norm(f"{_TRUNK}.head.norm", "image/norm_post")
        if image.projection == "mlp":
            found += dense(f"{_HEAD}.mlp.fc1", "image/projection/up")
            found += dense(f"{_HEAD}.mlp.fc2", "image/projection/out", bias=False)
        else:
            found += dense(f"{_HEAD}.proj", "image/projection/out", bias=False)
        return found

    layout: Mapping[str, Any] | None = {
        "image.kind": "convnext",
        "text.causal": True,
        **TEXT_LAYOUT,
    }

    @staticmethod
    def vision_cfg(image: Any) -> dict[str, Any]:
        return {
            "timm_model_name": _timm_name(image),
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": image.projection,
        }

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def _block(theirs: str, ours: str) -> list[Entry]:
    return [
        *conv(f"{theirs}.conv_dw", f"{ours}/conv"),
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        *dense(f"{theirs}.mlp.fc1", f"{ours}/mlp/up"),
        *dense(f"{theirs}.mlp.fc2", f"{ours}/mlp/down"),
        Entry(f"{theirs}.gamma", (f"{ours}/layer_scale",), SAME),
    ]


def _timm_name(image: ConvNeXtConfig) -> str:
    """The name of a tower in timm's registry.

    Raises:
      ValueError: there is none of this shape; open_clip's configurations can't describe one.
    """
    third = image.depths[2] if image.depth > 2 else 0
    name = _TIMM.get((image.widths[0], third), "")
    depths = (3, 4, third, 3) if name == _XXLARGE else (3, 3, third, 3)
    widths = tuple(image.widths[0] * 2**stage for stage in range(4))
    if not name or (image.depths, image.widths) != (depths, widths):
        raise ValueError(
            f"model.image.depths={list(image.depths)} with widths={list(image.widths)} are of no "
            f"ConvNeXt in timm; open_clip knows {', '.join(_TIMM.values())}"
        )
    return name
