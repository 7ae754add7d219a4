"""What several families share: constants and the reading of their configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxclip.weights.families._base import Checkpoint

# Means and deviations of OpenAI's training images (openai/CLIP, MIT licence).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

_ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def activation(name: Any) -> str:
    """Our name of an activation.

    Raises:
      ValueError: one that our towers do not have.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def read_number(config: Mapping[str, Any], key: str, default: int) -> int:
    """A positive whole number of a configuration.

    Raises:
      ValueError: it is something else.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(f"{key}={value!r} of the checkpoint's configuration is no positive number")
    return value


def square_grid(tokens: int, prefix: int, what: str) -> int:
    """Side of a square grid of patches.

    Raises:
      ValueError: the table of positions is no square with so many tokens before it.
    """
    side = round((tokens - prefix) ** 0.5)
    if side * side + prefix != tokens:
        raise ValueError(f"{what}: {tokens} positions are no square grid and {prefix} more")
    return side


def count_blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    """Number of the blocks ``prefix0``, ``prefix1``, …"""
    places = {
        re.split(r"[./]", name.removeprefix(prefix))[0]
        for name in shapes
        if name.startswith(prefix)
    }
    return len(places)


def hf_activation(name: str) -> str:
    """The name that ``transformers`` has for one of our activations."""
    return {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}[name]


def torch_gelu(config: Mapping[str, Any], default: str = "none") -> str:
    """The GELU of an open_clip tower: its ``act_kwargs``.

    Raises:
      ValueError: an approximation that is none of torch's.
    """
    known = {"none": "gelu", "tanh": "gelu_tanh"}
    given = config.get("act_kwargs") or {}
    approximate = given.get("approximate", default)
    if approximate not in known or set(given) - {"approximate"}:
        raise ValueError(f"act_kwargs={given!r}; known: approximate={', '.join(known)}")
    return known[approximate]


def image_size(checkpoint: Checkpoint, default: int) -> int:
    """Side of the images of an open_clip model whose tensors do not tell it.

    Raises:
      ValueError: images that are no square.
    """
    config = checkpoint.config
    vision = config.get("model_cfg", config).get("vision_cfg") or {}
    size = vision.get("image_size") or (config.get("preprocess_cfg") or {}).get("size") or default
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise ValueError(f"image_size={size!r} of the checkpoint; images are squares here")
    return read_number({"image_size": sides.pop()}, "image_size", default)


def norm_eps(config: Mapping[str, Any], default: float = 1e-5) -> float:
    """Epsilon of the layer norms of an open_clip tower: its ``norm_kwargs``."""
    return float((config.get("norm_kwargs") or {}).get("eps", default))
