"""OpenAI's modified ResNets in its own files and open_clip's, which keep their names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.image_towers.resnet import ResNetConfig
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess
from jaxclip.weights.families._layouts import TEXT_LAYOUT
from jaxclip.weights.families._open_clip_model import OtherTower, text_sizes
from jaxclip.weights.families._parts import (
    CLIP_MEAN,
    CLIP_STD,
    count_blocks,
    read_number,
    square_grid,
)
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import SAME, Entry, batch_norm, conv, dense, pointwise

_POOL = "visual.attnpool"
_HEAD_WIDTH = 64


class OpenCLIPResNet(OtherTower):
    """RN50, RN101, RN50x4, RN50x16 and RN50x64 (Radford et al. 2021, arXiv:2103.00020)."""

    example = "rn50"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        wanted = {f"{_POOL}.positional_embedding", "visual.layer1.0.conv1.weight"}
        return {*wanted, "text_projection"} <= set(checkpoint.shapes)

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        config = checkpoint.config.get("model_cfg", checkpoint.config)
        vision = dict(config.get("vision_cfg") or {})
        stages = count_blocks(
            {n: 0 for n in shapes if n.startswith("visual.layer")}, "visual.layer"
        )
        rows, width = shapes[f"{_POOL}.positional_embedding"]
        grid = square_grid(rows, 1, _POOL)
        return CLIPConfig(
            image=ResNetConfig(
                image_size=grid * 4 * 2 ** (stages - 1),
                depths=tuple(count_blocks(shapes, f"visual.layer{i + 1}.") for i in range(stages)),
                stem_width=shapes["visual.conv3.weight"][0],
                num_heads=max(1, width // read_number(vision, "head_width", _HEAD_WIDTH)),
            ),
            text=text_sizes(checkpoint),
            embed_dim=shapes[f"{_POOL}.c_proj.weight"][0],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def image_entries(image: Any) -> list[Entry]:
        attention = {"q": "query", "k": "key", "v": "value"}
        found = [Entry(f"{_POOL}.positional_embedding", ("image/positions",), SAME)]
        for index in range(3):
            found += conv(f"visual.conv{index + 1}", f"image/stem/conv_{index}", bias=False)
            found += batch_norm(f"visual.bn{index + 1}", f"image/stem/norm_{index}")
        number = 0
        for stage, depth in enumerate(image.depths):
            for index in range(depth):
                at, to = f"visual.layer{stage + 1}.{index}", f"image/blocks_{number}"
                # The first stage, too, has more channels than the stem.
                found += _block(at, to, shortcut=index == 0)
                number += 1
        for theirs, ours in attention.items():
            found += dense(f"{_POOL}.{theirs}_proj", f"image/attention/{ours}")
        found += dense(f"{_POOL}.c_proj", "image/projection")
        return found

    layout: Mapping[str, Any] | None = {"image.kind": "resnet", "text.causal": True, **TEXT_LAYOUT}

    @staticmethod
    def vision_cfg(image: Any) -> dict[str, Any]:
        return {
            "layers": list(image.depths),
            "width": image.stem_width,
            "head_width": image.width // image.num_heads,
            "patch_size": None,
        }

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return read_preprocess(checkpoint.config, CLIP_MEAN, CLIP_STD, sizes, {"kind": "clip"})


def _block(theirs: str, ours: str, *, shortcut: bool) -> Iterator[Entry]:
    for index, name in enumerate(("reduce", "conv", "expand")):
        layer = conv if name == "conv" else pointwise
        yield from layer(f"{theirs}.conv{index + 1}", f"{ours}/{name}", bias=False)
        yield from batch_norm(f"{theirs}.bn{index + 1}", f"{ours}/{name}_norm")
    if shortcut:
        yield from pointwise(f"{theirs}.downsample.0", f"{ours}/shortcut", bias=False)
        yield from batch_norm(f"{theirs}.downsample.1", f"{ours}/shortcut_norm")
