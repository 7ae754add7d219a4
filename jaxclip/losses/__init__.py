"""Contrastive losses: pure functions of the global batch's embeddings.

A loss is ``fn(image_embeddings f32[B, D], text_embeddings f32[B, D], *, logit_scale, logit_bias,
**options) -> (loss f32[], metrics)``. A new one is a function and a line in :data:`REGISTRY`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
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
    "from_config",
    "get",
    "names",
    "sigmoid",
    "sigmoid_blockwise",
    "softmax",
    "softmax_blockwise",
]


# What a caller binds at every step; all else is an option.
_ARGUMENTS = ("image_embeddings", "text_embeddings", "logit_scale", "logit_bias", "mesh")


def from_config(config: Mapping[str, Any]) -> Loss:
    """The loss of a configuration section, with its options bound.

    Args:
      config: ``{"name": "softmax", "label_smoothing": 0.1}``, say.

    Returns:
      The loss; still to be given are embeddings, ``logit_scale``, ``logit_bias`` and, if it has
      such a parameter, ``mesh``.

    Raises:
      ValueError: an unknown loss or option (the message names the nearest), or a value that can't
        be.
    """
    options = dict(config)
    name = options.pop("name")
    loss = get(name)
    known = [n for n in inspect.signature(loss).parameters if n not in _ARGUMENTS]
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean 'loss.{near[0]}'?" if near else f"{name} has {', '.join(known)}"
            raise ValueError(f"unknown option loss.{option} of {name!r}; {hint}")
    _check_values(options)
    return functools.partial(loss, **options)


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


def _check_values(options: Mapping[str, Any]) -> None:
    smoothing = options.get("label_smoothing", 0.0)
    if not 0.0 <= smoothing < 1.0:
        raise ValueError(f"loss.label_smoothing={smoothing} must be in [0, 1)")
    precision = options.get("precision", "highest")
    if precision not in ("default", "high", "highest"):
        raise ValueError(f"loss.precision={precision!r}; use 'default', 'high' or 'highest'")
    tile_size = options.get("tile_size", 1)
    if tile_size < 1:
        raise ValueError(f"loss.tile_size={tile_size} must be at least 1")
