"""What a family of checkpoints is, and which one a checkpoint belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxclip.models import presets
from jaxclip.models.presets import CLIPConfig
from jaxclip.registry import Registry
from jaxclip.weights.files import Tensor
from jaxclip.weights.mapping import Entry, MappingError

TOWERS = ("image", "text")
FAMILIES = Registry("family of checkpoints", "jaxclip.weights.families")
# Share of a family's names from which on it is named as the nearest.
_NEAR = 0.3


class Checkpoint(NamedTuple):
    """What is known of a checkpoint before its tensors are read.

    Attributes:
      path: for errors.
      shapes: of the tensors by name.
      config: the JSON beside it (``config.json``, ``open_clip_config.json``); empty if none.
      preprocessor: the JSON of its preprocessing; empty if none.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any] = {}
    preprocessor: Mapping[str, Any] = {}


class Preprocess(NamedTuple):
    """How images and texts become input.

    Attributes:
      image_mean: of pixels in [0, 1].
      image_std: likewise.
      image_ops: chain of :mod:`jaxclip.data.image_ops` for evaluation.
      tokenizer: section ``tokenizer`` of a configuration.
    """

    image_mean: Sequence[float]
    image_std: Sequence[float]
    image_ops: str
    tokenizer: Mapping[str, Any]


class SpecialIds(NamedTuple):
    """Ids of a tokenizer that other people's configurations name.

    Attributes:
      start: begins a text; None for a tokenizer without.
      end: ends it; a causal text tower is read there.
      pad: fills what is behind it.
    """

    start: int | None
    end: int
    pad: int = 0


class Family:
    """One way to name and lay out the tensors of a CLIP model.

    Attributes:
      example: a preset that it can hold, whose names tell how near a checkpoint is to it.
      layout: fields of an architecture that the format fixes, such as ``{"image.pool": "cls"}``;
        None for a family that is only read.
      weights_file: name of the file of tensors that is written.
    """

    example: str

    @staticmethod
    def canonical(name: str) -> str | None:
        """A tensor's name as the table has it, or None for what is no parameter of the model.

        For files that keep more than the model (an optimizer's state), or keep it in several
        ways.
        """
        return name

    @staticmethod
    def matches(checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint is of this family, by its names and configuration."""
        raise NotImplementedError

    @staticmethod
    def sizes(checkpoint: Checkpoint) -> CLIPConfig:
        """The architecture.

        Raises:
          ValueError: one that our towers do not have.
        """
        raise NotImplementedError

    @staticmethod
    def entries(sizes: CLIPConfig) -> list[Entry]:
        """The table of tensors of an architecture."""
        raise NotImplementedError

    @classmethod
    def entries_of(cls, checkpoint: Checkpoint, sizes: CLIPConfig) -> list[Entry]:
        """The table for the tensors of a file, where a family has more than one layout."""
        del checkpoint
        return cls.entries(sizes)

    @staticmethod
    def parts(checkpoint: Checkpoint) -> tuple[str, ...]:
        """Which towers a checkpoint holds, of ``"image"`` and ``"text"``."""
        del checkpoint
        return TOWERS

    @staticmethod
    def joined(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Tensors by name, with those put together that are one parameter of ours."""
        return tensors

    @staticmethod
    def ignore(name: str) -> bool:
        """Whether a tensor holds no weights (a buffer)."""
        del name
        return False

    @staticmethod
    def terms(sizes: CLIPConfig) -> list[dict[str, Any]]:
        """Terms of ``config.objective`` whose own parameters come with the weights."""
        del sizes
        return []

    @staticmethod
    def init_terms(sizes: CLIPConfig, rng: jax.Array) -> dict[str, Any]:
        """Those parameters as the terms draw them, by the terms' names; traceable."""
        del sizes, rng
        return {}

    # What it is written with, beside its table; none for a family that is only read.
    layout: Mapping[str, Any] | None = None
    weights_file = ""

    @staticmethod
    def config_files(
        sizes: CLIPConfig, preprocess: Preprocess, ids: SpecialIds
    ) -> dict[str, Mapping[str, Any]]:
        """The JSON files beside the tensors, by name.

        Raises:
          ValueError: an architecture or preprocessing that the family has no words for.
        """
        raise NotImplementedError

    @staticmethod
    def preprocess(checkpoint: Checkpoint, sizes: CLIPConfig) -> Preprocess:
        """How the model's inputs are made."""
        raise NotImplementedError


def detect(checkpoint: Checkpoint) -> tuple[str, type[Family]]:
    """The family of a checkpoint; its names may still be other than canonical.

    Raises:
      MappingError: none matches; the message shows some of its names.
    """
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        if family.matches(renamed(checkpoint, family)):
            return name, family
    _refuse_known(checkpoint)
    shown = ", ".join(list(checkpoint.shapes)[:4]) or "nothing"
    kind = checkpoint.config.get("model_type")
    told = f", and its configuration says model_type {str(kind)[:40]!r}" if kind else ""
    raise MappingError(
        f"{checkpoint.path} is of no known family ({', '.join(FAMILIES.names())}); it holds "
        f"{len(checkpoint.shapes)} tensors: {shown}, …{told}{_nearest(checkpoint)}"
    )


def _nearest(checkpoint: Checkpoint) -> str:
    """The family that has most of its names here, and what it expects besides; empty for none."""

    def plain(names: Iterable[str]) -> set[str]:
        return {re.sub(r"\d+", "#", name) for name in names}

    best: tuple[float, str, list[str]] = (0.0, "", [])
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        wanted = plain(entry.theirs for entry in family.entries(presets.get(family.example)))
        lacks = wanted - plain(renamed(checkpoint, family).shapes)
        best = max(best, (1 - len(lacks) / len(wanted), name, sorted(lacks)))
    share, name, lacks_most = best
    if share < _NEAR:
        return ""
    return (
        f"; the nearest is {name}, of whose names {share:.0%} are there, but not "
        f"{', '.join(lacks_most[:3])}{', …' if len(lacks_most) > 3 else ''}"
    )


def _refuse_known(checkpoint: Checkpoint) -> None:
    """Say what is missing, where an open_clip configuration or a name tells it.

    Raises:
      MappingError: a part that we do not have.
    """
    config = checkpoint.config.get("model_cfg", checkpoint.config)
    vision, text = config.get("vision_cfg") or {}, config.get("text_cfg") or {}
    factors = [name for name in checkpoint.shapes if ".lora_" in name]
    if factors:
        raise MappingError(
            f"{checkpoint.path} holds low-rank factors (LoRA, {len(factors)} of "
            f"{len(checkpoint.shapes)} tensors, such as {factors[0]}), not a model: merge them "
            "into their base model where they were made (peft: merge_and_unload(), "
            "save_pretrained) and give that folder"
        )
    lacks = []
    if vision.get("timm_model_name"):
        lacks.append(f"timm's image tower {vision['timm_model_name']!r}")
    elif isinstance(vision.get("layers"), (list, tuple)):
        lacks.append("a modified ResNet as image tower")
    if text.get("hf_model_name"):
        lacks.append(f"the text tower {text['hf_model_name']!r} of transformers")
    if config.get("multimodal_cfg"):
        lacks.append("CoCa's pooling and text decoder")
    if lacks:
        what = " with ".join(lacks)
        raise MappingError(f"{checkpoint.path}: no family that is known here has {what}")


def renamed(checkpoint: Checkpoint, family: type[Family]) -> Checkpoint:
    """A checkpoint with the names of a family's table, without what is no parameter."""
    shapes = {
        new: shape for name, shape in checkpoint.shapes.items() if (new := family.canonical(name))
    }
    return checkpoint._replace(shapes=shapes)
