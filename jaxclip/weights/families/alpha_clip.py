"""Alpha-CLIP's files: OpenAI's names, and a convolution for a fourth channel of the picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxclip.models.presets import CLIPConfig, TextConfig
from jaxclip.weights.families._base import TOWERS, Checkpoint, Family, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import CLIP_LAYOUT, check_clip_preprocess
from jaxclip.weights.families._open_clip_model import OPENAI_NUMBERS
from jaxclip.weights.families._open_clip_text import flat_name, read_text, text_entries
from jaxclip.weights.families.open_clip import OpenCLIP, image_entries, read_image
from jaxclip.weights.mapping import SCALAR, Entry, convolution

_ALPHA = "visual.conv1_alpha.weight"


class AlphaCLIP(Family):
    """Alpha-CLIP (Sun et al., 2024, arXiv:2312.03818): its image tower alone, or a whole model.

    A whole model is written by the names from which its authors' ``build_model`` makes one.
    """

    example = "alphaclip_b16"

    @staticmethod
    def canonical(name: str) -> str | None:
        # In its model a linear layer is where OpenAI's files have two parameters.
        return flat_name(name).replace(".attn.in_proj.", ".attn.in_proj_")

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        wanted = {"visual.class_embedding", "visual.proj", "visual.conv1.weight", _ALPHA}
        return wanted <= set(checkpoint.shapes)

    @staticmethod
    def parts(checkpoint: Checkpoint) -> tuple[str, ...]:
        return TOWERS if "token_embedding.weight" in checkpoint.shapes else ("image",)

    @staticmethod
    def ignore(name: str) -> bool:
        return name in OPENAI_NUMBERS or name == "attn_mask"

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> CLIPConfig:
        shapes = checkpoint.shapes
        image = dataclasses.replace(read_image(shapes, {}, quick=True), alpha=True)
        whole = cls.parts(checkpoint) == TOWERS
        return CLIPConfig(
            image=image,
            text=read_text(shapes, {}, quick=True) if whole else TextConfig(),
            embed_dim=shapes["visual.proj"][1],
            logit_scale_init=math.log(1 / 0.07),
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        patches = convolution(sizes.image.patch_size, channels=1)
        return [
            *image_entries(sizes.image),
            Entry(_ALPHA, ("image/alpha_embedding/kernel",), patches),
            *text_entries(sizes),
            Entry("logit_scale", ("logit_scale",), SCALAR),
        ]

    layout: Mapping[str, Any] = {**CLIP_LAYOUT, "image.alpha": True}
    weights_file = "model.safetensors"

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        check_clip_preprocess(preprocess, sizes, ids, "alpha_clip")
        return {}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return OpenCLIP.preprocess(checkpoint._replace(config={}), sizes)
