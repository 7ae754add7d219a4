"""Hugging Face ``Siglip2Model``: SigLIP 2 for pictures of any aspect ratio (NaFlex)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxclip.data.siglip_tokens import kind_of
from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Checkpoint, Preprocess, SpecialIds
from jaxclip.weights.families._layouts import SIGLIP_LAYOUT, resizing
from jaxclip.weights.families._parts import HALF, read_number
from jaxclip.weights.families.hf_siglip import HFSigLIP
from jaxclip.weights.mapping import TRANSPOSED, Entry

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_LENGTH = 256  # of a sequence, where no preprocessor tells
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class HFSigLIP2(HFSigLIP):
    """``transformers.Siglip2Model`` (Tschannen et al. 2025, arXiv:2502.14786): SigLIP's tensors,
    but for a linear patch embedding, which takes patches [p, p, 3] flattened as ours does."""

    example = "siglip2_b16_naflex"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        shapes = checkpoint.shapes
        return (
            "vision_model.head.probe" in shapes
            and "text_model.head.weight" in shapes
            and len(shapes.get(_PATCHES, ())) == 2
        )

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        width, values = checkpoint.shapes[_PATCHES]
        patch_size = math.isqrt(values // 3)
        if 3 * patch_size**2 != values:
            raise ValueError(f"{_PATCHES} {[width, values]} is of no square patches of 3 channels")
        square = {**checkpoint.shapes, _PATCHES: (width, 3, patch_size, patch_size)}
        sizes = HFSigLIP.sizes(checkpoint._replace(shapes=square))
        length = read_number(checkpoint.preprocessor, "max_num_patches", _LENGTH)
        return dataclasses.replace(
            sizes, image=dataclasses.replace(sizes.image, max_patches=length)
        )

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        kernel = Entry(_PATCHES, ("image/patch_embedding/kernel",), TRANSPOSED)
        return [kernel, *(e for e in HFSigLIP.entries(sizes) if e.theirs != _PATCHES)]

    layout: Mapping[str, Any] = {
        key: value for key, value in SIGLIP_LAYOUT.items() if key != "image.max_patches"
    }

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        if not sizes.image.max_patches:
            raise ValueError("model.image.max_patches=0 is a tower of square pictures: hf_siglip")
        config = dict(HFSigLIP.config_files(sizes, preprocess, ids)["config.json"])
        vision = {k: v for k, v in config["vision_config"].items() if k != "image_size"}
        vision |= {"model_type": "siglip2_vision_model", "num_patches": sizes.image.grid**2}
        config |= {
            "architectures": ["Siglip2Model"],
            "model_type": "siglip2",
            "vision_config": vision,
            "text_config": {**config["text_config"], "model_type": "siglip2_text_model"},
        }
        _, method = resizing(preprocess)
        pictures = {
            "image_processor_type": "Siglip2ImageProcessor",
            "do_resize": True,
            "resample": {name: number for number, name in _METHODS.items()}[method],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [float(x) for x in preprocess.image_mean],
            "image_std": [float(x) for x in preprocess.image_std],
            "patch_size": sizes.image.patch_size,
            "max_num_patches": sizes.image.max_patches,
        }
        return {"config.json": config, "preprocessor_config.json": pictures}

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        given = checkpoint.preprocessor
        resample = given.get("resample", 2)
        if resample not in _METHODS:
            raise ValueError(
                f"resample={resample!r} of the checkpoint; known: {', '.join(map(str, _METHODS))}"
            )
        return Preprocess(
            given.get("image_mean", HALF),
            given.get("image_std", HALF),
            f"resize(method='{_METHODS[resample]}')",
            {"kind": kind_of(sizes.text.vocab_size), "context_length": sizes.text.context_length},
        )
