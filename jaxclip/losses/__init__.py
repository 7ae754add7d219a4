"""Contrastive losses: pure functions of the global batch's embeddings.

A loss is ``fn(image_embeddings f32[B, D], text_embeddings f32[B, D], *, logit_scale, logit_bias,
**options) -> (loss f32[], metrics)``. :func:`infonce` is the softmax loss with more options, for
objectives to build on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxclip.losses.blockwise import sigmoid_blockwise, softmax_blockwise
from jaxclip.losses.cosine import cosine_distance
from jaxclip.losses.hinge import hinge
from jaxclip.losses.infonce import infonce, off_diagonal_logsumexp
from jaxclip.losses.retrieval import retrieve
from jaxclip.losses.sigmoid import sigmoid
from jaxclip.losses.simclr import simclr
from jaxclip.losses.soft_targets import (
    SoftContrast,
    Teacher,
    products,
    soft_contrast,
    soft_cross_entropy,
    soft_kl,
)
from jaxclip.losses.softmax import softmax
from jaxclip.losses.tokens import token_sums
from jaxclip.losses.tokenwise import tokenwise_similarity
from jaxclip.losses.word_groups import group_sums, group_weights
from jaxclip.registry import check_options, hint, option_names

Loss = Callable[..., tuple[Any, dict[str, Any]]]

# "plain" holds the [B, B] logits; "blockwise" never does, and takes the mesh.
IMPLEMENTATIONS: dict[str, dict[str, Loss]] = {
    "softmax": {"plain": softmax, "blockwise": softmax_blockwise},
    "sigmoid": {"plain": sigmoid, "blockwise": sigmoid_blockwise},
}

REGISTRY: dict[str, Loss] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "softmax_blockwise": softmax_blockwise,
    "sigmoid_blockwise": sigmoid_blockwise,
}

__all__ = [
    "IMPLEMENTATIONS",
    "REGISTRY",
    "SoftContrast",
    "Teacher",
    "cosine_distance",
    "from_config",
    "get",
    "group_sums",
    "group_weights",
    "hinge",
    "infonce",
    "names",
    "off_diagonal_logsumexp",
    "products",
    "retrieve",
    "sigmoid",
    "sigmoid_blockwise",
    "simclr",
    "soft_contrast",
    "soft_cross_entropy",
    "soft_kl",
    "softmax",
    "softmax_blockwise",
    "token_sums",
    "tokenwise_similarity",
]


# What a caller binds at every step; all else is an option.
_ARGUMENTS = ("image_embeddings", "text_embeddings", "logit_scale", "logit_bias", "mesh")


def from_config(config: Mapping[str, Any]) -> Loss:
    """The loss of a configuration section, with its options bound.

    Args:
      config: ``{"name": "softmax", "implementation": "blockwise", "label_smoothing": 0.1}``, say;
        the name ``"softmax_blockwise"`` is short for the first two.

    Returns:
      ``loss(image_embeddings, text_embeddings, *, logit_scale, logit_bias=None, mesh=None)``.

    Raises:
      ValueError: an unknown loss or option (the message names the nearest), or a value that can't
        be.
    """
    options = dict(config)
    name = options.pop("name")
    loss = get(name, options.pop("implementation", None))
    known = [name for name in option_names(loss) if name not in _ARGUMENTS]
    check_options(options, [*known, "implementation"], f"loss {name!r}")
    _check_values(options)
    bound = functools.partial(loss, **options)
    if any(loss is each["blockwise"] for each in IMPLEMENTATIONS.values()):
        return bound

    def on_any_mesh(*embeddings: Any, mesh: jax.sharding.Mesh | None = None, **rest: Any) -> Any:
        del mesh  # XLA places the matrix of logits
        return bound(*embeddings, **rest)

    return on_any_mesh


def get(name: str, implementation: str | None = None) -> Loss:
    """The loss of a name.

    Args:
      name: one of :func:`names`.
      implementation: ``"plain"`` or ``"blockwise"``; None for what the name says.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    if name not in REGISTRY:
        raise ValueError(f"unknown loss {name!r}{hint(name, names())}")
    if implementation is None:
        return REGISTRY[name]
    base, _, said = name.partition("_")
    if implementation not in IMPLEMENTATIONS[base]:
        raise ValueError(f"loss.implementation={implementation!r}; use 'plain' or 'blockwise'")
    if said and said != implementation:
        raise ValueError(f"loss.implementation={implementation!r} contradicts the name {name!r}")
    return IMPLEMENTATIONS[base][implementation]


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
