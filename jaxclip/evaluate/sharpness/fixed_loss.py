"""The loss that is looked at: CLIP's on fixed batches, at a temperature that stays."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import losses

Params = Any
Loss = Callable[[Params], jax.Array]
# (params, "image" or "text", array of a batch) -> float32[B, D] of unit length
Encode = Callable[[Params, str, jax.Array], jax.Array]

TOWERS = ("image", "text")


def pair_loss(
    encode: Encode,
    batches: Mapping[str, jax.Array],
    logit_scale: jax.Array,
    *,
    normalize_logits: bool = False,
) -> Loss:
    """The mean contrastive loss of fixed batches, as a function of the towers' parameters.

    The temperature is no parameter of it: one number that all logits share would decide the
    sharpness of everything else.

    Args:
      encode: of the model.
      batches: ``image`` [N, B, …] and ``text`` [N, B, L]: N batches of B pairs, each its own
        negatives.
      logit_scale: float32[], log of the factor on the cosines.
      normalize_logits: centre each row of logits and make it of unit length before the loss, as
        Andriushchenko et al. (2023) do to compare models of different confidence.
    """

    def of_batch(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        image, text = (encode(params, tower, batch[tower]) for tower in TOWERS)
        if not normalize_logits:
            return losses.softmax(image, text, logit_scale=logit_scale)[0]
        logits = jnp.exp(logit_scale) * jnp.matmul(image, text.T, precision="highest")
        return (_cross_entropy(_centred(logits)) + _cross_entropy(_centred(logits.T))) / 2

    def loss(params: Params) -> jax.Array:
        # One batch at a time: memory is that of one. The backward pass runs each forward again.
        body = jax.checkpoint(lambda batch: of_batch(params, batch))
        return jnp.mean(jax.lax.map(body, dict(batches)))

    return loss


def _centred(logits: jax.Array) -> jax.Array:
    centred = logits - jnp.mean(logits, axis=1, keepdims=True)
    square = jnp.sum(centred**2, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def _cross_entropy(logits: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))


def groups_of(params: Params) -> dict[str, list[str]]:
    """Paths of the tensors by layer: each block of a tower, and what is before and behind them.

    Args:
      params: nested dict.

    Returns:
      ``{"image/blocks_0": [paths], …}``; a tensor outside of blocks is in the group of its first
      two names, such as ``image/projection``.
    """
    groups: dict[str, list[str]] = {}
    for path in paths_of(params):
        found = re.match(r"[^/]+/[^/]+", path)
        groups.setdefault(found[0] if found else path, []).append(path)
    return groups


def paths_of(params: Params) -> list[str]:
    """``"image/blocks_0/mlp/up/kernel"`` of each leaf, in the order of ``jax.tree.leaves``."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
