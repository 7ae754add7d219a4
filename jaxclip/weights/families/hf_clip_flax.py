"""``FlaxCLIPModel`` of transformers 4: the names of ``CLIPModel`` in Flax's words."""

from __future__ import annotations

import dataclasses

from jaxclip.models.presets import CLIPConfig
from jaxclip.weights.families._base import Checkpoint, Family, Preprocess
from jaxclip.weights.families.hf_clip import HFCLIP
from jaxclip.weights.mapping import SAME, Entry, flat

# Ends of names there and of torch's.
_ENDS = {".kernel": ".weight", ".scale": ".weight", ".embedding": ".weight"}
_PATCHES = "image/patch_embedding/kernel"


class HFCLIPFlax(Family):
    """``flax_model.msgpack`` of ``openai/clip-vit-*`` and others; kernels are as ours."""

    example = "vit_b32_quickgelu"

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        names = {
            "vision_model.pre_layrnorm.scale",
            "text_model.embeddings.token_embedding.embedding",
        }
        return bool(names & set(checkpoint.shapes))

    @staticmethod
    def parts(checkpoint: Checkpoint) -> tuple[str, ...]:
        return HFCLIP.parts(_as_torch(checkpoint))

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        return HFCLIP.sizes(_as_torch(checkpoint))

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        side, width = sizes.image.patch_size, sizes.image.width
        return [_entry(entry, (side, side, 3, width)) for entry in HFCLIP.entries(sizes)]

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        return HFCLIP.preprocess(checkpoint, sizes)


def _entry(entry: Entry, patches: tuple[int, ...]) -> Entry:
    (path,) = entry.ours
    name, end = entry.theirs.removesuffix(".weight"), path.rsplit("/", 1)[-1]
    if name == entry.theirs:  # a bias, the class token, the scale of logits
        return entry
    end = end if end in ("kernel", "scale") else "embedding"
    layout = flat(patches) if path == _PATCHES else SAME
    return dataclasses.replace(entry, theirs=f"{name}.{end}", layout=layout)


def _as_torch(checkpoint: Checkpoint) -> Checkpoint:
    """The same by ``CLIPModel``'s names and shapes."""
    shapes = {}
    for name, shape in checkpoint.shapes.items():
        end = name[name.rfind(".") :]
        if end == ".kernel":
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shapes[name.removesuffix(end) + _ENDS[end] if end in _ENDS else name] = shape
    return checkpoint._replace(shapes=shapes)
