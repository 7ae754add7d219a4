"""MobileCLIP S0 to S4 in open_clip's files: timm's FastViT, CLIP's text tower.

Apple's own files have other names, and S0 of the first generation another text tower; open_clip has
neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.models.image_towers.fastvit import FastViTConfig
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess
from jaxclip.weights.families._layouts import TEXT_LAYOUT, resize_ops
from jaxclip.weights.families._open_clip_model import OtherTower, text_sizes
from jaxclip.weights.families._parts import count_blocks, image_size
from jaxclip.weights.families.open_clip import read_preprocess
from jaxclip.weights.mapping import (
    PLANES,
    Entry,
    batch_norm,
    conv,
    dense,
    norm,
    pointwise,
    rows_apart,
)

_TRUNK = "visual.trunk"
# Depths and width of the first stage of timm's towers.
_TIMM = {
    ((2, 6, 10, 2), 64): "fastvit_mci0",
    ((4, 12, 20, 4), 64): "fastvit_mci1",
    ((4, 12, 24, 4), 80): "fastvit_mci2",
    ((2, 12, 24, 4, 2), 96): "fastvit_mci3",
    ((2, 12, 24, 4, 4), 128): "fastvit_mci4",
}
_LAYER_NORMS = ("fastvit_mci3", "fastvit_mci4")


class OpenCLIPFastViT(OtherTower):
    """``MobileCLIP-S*``, ``MobileCLIP2-S*`` (Vasu et al. 2024, arXiv:2311.17049; 2508.20691)."""

    example = "mobileclip2_s0"

    text_prefix = "text."

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = set(checkpoint.shapes)
        return {f"{_TRUNK}.stages.0.blocks.0.mlp.conv.conv.weight", "text.text_projection"} <= names

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        stages = range(count_blocks(shapes, f"{_TRUNK}.stages."))
        blocks = [f"{_TRUNK}.stages.{i}.blocks.0" for i in stages]
        widths = tuple(shapes[f"{block}.mlp.fc2.weight"][0] for block in blocks)
        attending = [block for block in blocks if f"{block}.token_mixer.qkv.weight" in shapes]
        squeezes = [
            i for i in stages if f"{_TRUNK}.stages.{i}.downsample.proj.0.se.fc1.weight" in shapes
        ]
        folded = f"{_TRUNK}.stem.0.reparam_conv.weight" in shapes
        has_batch_norm = not attending or f"{attending[0]}.norm.running_mean" in shapes
        return CLIPConfig(
            image=FastViTConfig(
                image_size=image_size(checkpoint, 256),
                depths=tuple(count_blocks(shapes, f"{_TRUNK}.stages.{i}.blocks.") for i in stages),
                widths=widths,
                mlp_ratio=shapes[f"{blocks[0]}.mlp.fc1.weight"][0] // widths[0],
                attention_stages=len(attending),
                squeeze_stages=len(squeezes),
                attention_norm="batch" if has_batch_norm else "layer",
                stem_scale=folded or f"{_TRUNK}.stem.0.conv_scale.conv.weight" in shapes,
                form="folded" if folded else "branches",
            ),
            text=text_sizes(checkpoint, "text."),
            embed_dim=shapes[f"{_TRUNK}.head.fc.weight"][0],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def image_entries(image: Any) -> list[Entry]:
        c = image
        folded = c.form == "folded"
        found: list[Entry] = []
        for index in range(3):
            names = _branches(scale=c.stem_scale and index < 2, identity=index == 2, folded=folded)
            at, to = f"{_TRUNK}.stem.{index}", f"image/stem/layer_{index}"
            found += _mobile_one(at, to, names, is_conv=index < 2)
        number = 0
        for stage, depth in enumerate(c.depths):
            at, to = f"{_TRUNK}.stages.{stage}", f"image/blocks_{number}"
            behind = c.depth - stage
            if stage:
                squeeze = behind <= c.squeeze_stages
                found += _downsample(f"{at}.downsample.proj", to, squeeze, folded)
            if behind <= c.attention_stages:
                name = "reparam_conv" if folded else "pos_enc"
                found += conv(f"{at}.pos_emb.{name}", f"{to}/position")
            for index in range(depth):
                block, to = f"{at}.blocks.{index}", f"image/blocks_{number}"
                if behind <= c.attention_stages:
                    found += _attention(block, to, c.attention_norm)
                    found += _mlp(block, to, "layer_scale_2")
                else:
                    found += _mixer(f"{block}.token_mixer", f"{to}/mixer", folded)
                    found += _mlp(block, to, "layer_scale")
                number += 1
        names = _branches(scale=True, identity=False, folded=folded)
        found += _mobile_one(f"{_TRUNK}.final_conv", "image/final", names)
        found += _squeeze(f"{_TRUNK}.final_conv.se", "image/final/squeeze")
        found += dense(f"{_TRUNK}.head.fc", "image/projection")
        return found

    # Folded towers have no words in open_clip's configurations: it makes the branches.
    layout: Mapping[str, Any] | None = {
        "image.kind": "fastvit",
        "image.form": "branches",
        **TEXT_LAYOUT,
    }

    @staticmethod
    def vision_cfg(image: Any) -> dict[str, Any]:
        return {
            "timm_model_name": _timm_name(image),
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": None,
        }

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return mobile_preprocess(checkpoint, sizes)


def mobile_preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
    """MobileCLIP sees pixels in [0, 1], resized bilinearly, where its files do not say else."""
    found = read_preprocess(checkpoint.config, [0.0] * 3, [1.0] * 3, sizes, {"kind": "clip"})
    if "interpolation" in (checkpoint.config.get("preprocess_cfg") or {}):
        return found
    return found._replace(image_ops=resize_ops("shortest", "bilinear"))


def _branches(*, scale: bool, identity: bool, folded: bool) -> tuple[str, ...]:
    if folded:
        return ("folded",)
    return ("conv", *(["scale"] if scale else []), *(["identity"] if identity else []))


def _mobile_one(
    theirs: str, ours: str, branches: tuple[str, ...], *, is_conv: bool = True
) -> Iterator[Entry]:
    """``MobileOneBlock``; ``is_conv``: its kernel is a convolution's, not a linear layer's."""
    layer = conv if is_conv else pointwise
    for branch in branches:
        if branch == "folded":
            yield from layer(f"{theirs}.reparam_conv", f"{ours}/folded")
        elif branch == "identity":
            yield from batch_norm(f"{theirs}.identity", f"{ours}/identity")
        else:
            at = f"{theirs}.conv_kxk.0" if branch == "conv" else f"{theirs}.conv_scale"
            # The 1x1 branch of the first convolution is a linear layer over all channels.
            full = branch == "scale" and theirs.endswith("stem.0")
            yield from (pointwise if full else layer)(f"{at}.conv", f"{ours}/{branch}", bias=False)
            yield from batch_norm(f"{at}.bn", f"{ours}/{branch}_norm")


def _downsample(theirs: str, ours: str, squeeze: bool, folded: bool) -> Iterator[Entry]:
    at, to = f"{theirs}.0", f"{ours}/downsample"
    if folded:
        yield from conv(f"{at}.reparam_conv", f"{to}/folded")
    else:
        for name in ("large", "small"):
            yield from conv(f"{at}.{name}_conv.conv", f"{to}/{name}", bias=False)
            yield from batch_norm(f"{at}.{name}_conv.bn", f"{to}/{name}_norm")
    if squeeze:
        yield from _squeeze(f"{at}.se", f"{to}/squeeze")
    names = _branches(scale=False, identity=True, folded=folded)
    yield from _mobile_one(f"{theirs}.1", f"{ours}/downsample_point", names, is_conv=False)


def _squeeze(theirs: str, ours: str) -> Iterator[Entry]:
    yield from pointwise(f"{theirs}.fc1", f"{ours}/reduce")
    yield from pointwise(f"{theirs}.fc2", f"{ours}/expand")


def _mixer(theirs: str, ours: str, folded: bool) -> Iterator[Entry]:
    if folded:
        yield from conv(f"{theirs}.reparam_conv", f"{ours}/folded")
        return
    names = _branches(scale=True, identity=True, folded=False)
    yield from _mobile_one(f"{theirs}.mixer", f"{ours}/branches", names)
    yield from batch_norm(f"{theirs}.norm.identity", f"{ours}/norm")
    yield Entry(f"{theirs}.layer_scale.gamma", (f"{ours}/layer_scale",), PLANES)


def _attention(theirs: str, ours: str, norm_kind: str) -> Iterator[Entry]:
    normed = batch_norm if norm_kind == "batch" else norm
    yield from normed(f"{theirs}.norm", f"{ours}/attention_norm")
    paths = tuple(f"{ours}/attention/{name}/kernel" for name in ("query", "key", "value"))
    yield Entry(f"{theirs}.token_mixer.qkv.weight", paths, rows_apart(3, transpose=True))
    yield from dense(f"{theirs}.token_mixer.proj", f"{ours}/attention/out")
    yield Entry(f"{theirs}.layer_scale_1.gamma", (f"{ours}/attention_scale",), PLANES)


def _mlp(theirs: str, ours: str, scale: str) -> Iterator[Entry]:
    yield from conv(f"{theirs}.mlp.conv.conv", f"{ours}/mlp_conv", bias=False)
    yield from batch_norm(f"{theirs}.mlp.conv.bn", f"{ours}/mlp_norm")
    yield from pointwise(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
    yield from pointwise(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    yield Entry(f"{theirs}.{scale}.gamma", (f"{ours}/mlp_scale",), PLANES)


def _timm_name(image: FastViTConfig) -> str:
    """The name of a tower in timm's registry.

    Raises:
      ValueError: there is none of this shape; open_clip's configurations can't describe one.
    """
    name = _TIMM.get((image.depths, image.widths[0]), "")
    larger = name in _LAYER_NORMS
    wanted = FastViTConfig(
        image_size=image.image_size,
        depths=image.depths,
        widths=tuple(image.widths[0] * 2**stage for stage in range(image.depth)),
        mlp_ratio=4 if larger else 3,
        attention_stages=2 if larger else 1,
        squeeze_stages=0 if larger else 2,
        attention_norm="layer" if larger else "batch",
        stem_scale=not larger,
    )
    if not name or image != wanted:
        raise ValueError(
            f"model.image ({image.summary}) is no FastViT of timm's that open_clip uses: "
            f"{', '.join(_TIMM.values())}"
        )
    return name
