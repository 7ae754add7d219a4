"""Contrastive losses: pure functions of the global batch's embeddings.

A loss is ``fn(image_embeddings f32[B, D], text_embeddings f32[B, D], *, logit_scale, logit_bias,
**options) -> (loss f32[], metrics)``. A new one is a function and a line in :data:`REGISTRY`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from jaxclip.losses.blockwise import sigmoid_blockwise, softmax_blockwise
from jaxclip.losses.sigmoid import sigmoid
from jaxclip.losses.softmax import softmax

Loss = Callable[..., tuple[Any, dict[str, Any]]]

REGISTRY: dict[str, Loss] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "softmax_blockwise": softmax_blockwise,
    "sigmoid_blockwise": sigmoid_blockwise,
}

__all__ = [
    "REGISTRY",
    "get",
    "names",
    "sigmoid",
    "sigmoid_blockwise",
    "softmax",
    "softmax_blockwise",
]


def get(name: str) -> Loss:
    """The loss of a name.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
        raise ValueError(f"unknown loss {name!r}; {hint}")
    return REGISTRY[name]


def names() -> list[str]:
    """Names of the losses."""
    return sorted(REGISTRY)
