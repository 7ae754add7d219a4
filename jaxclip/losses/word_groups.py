"""Groups of patches for words, and their contrast within a pair (SPARC, arXiv:2401.09865)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.losses._base import unit
from jaxclip.shapes import check_shapes

_NOTHING = -1e30


def group_weights(texts: jax.Array, patches: jax.Array) -> jax.Array:
    """Which patches belong to a word: float32[B, L, P], rows sum to 1.

    Products of a word with all patches are brought to [0, 1] by their least and largest, those
    below 1 / P become 0, and the rest is scaled to sum 1. Equal products give equal weights.

    Args:
      texts: float[B, L, D].
      patches: float[B, P, D].

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes("group_weights", texts=(texts, "B L D"), patches=(patches, "B P D"))
    products = jnp.einsum("bqd,bpd->bqp", texts, patches, preferred_element_type=jnp.float32)
    least, largest = (f(products, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    span = largest - least
    shares = (products - least) / jnp.where(span > 0, span, 1.0)
    shares = jnp.where(span > 0, shares, 1.0)
    shares = jnp.where(shares < 1 / patches.shape[1], 0.0, shares)
    return shares / jnp.sum(shares, axis=-1, keepdims=True)


def group_sums(
    groups: jax.Array, texts: jax.Array, real: jax.Array, logit_scale: jax.Array
) -> dict[str, jax.Array]:
    """Contrast words with their patch groups among the words of the same caption.

    Args:
      groups: float[B, L, D], for each word the weighted sum of its patches.
      texts: float[B, L, D].
      real: bool[B, L], the others are neither rows nor columns.
      logit_scale: float32[], log of the factor on cosines.

    Returns:
      float32[B] each, sums over a caption: ``nll``, the mean of both directions' cross-entropies,
      and ``tokens``.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes(
        "group_sums",
        groups=(groups, "B L D"),
        texts=(texts, "B L D"),
        real=(real, "B L"),
        logit_scale=(logit_scale, ""),
    )
    logits = jnp.exp(logit_scale) * jnp.einsum("bqd,brd->bqr", unit(groups), unit(texts))
    both = real[:, :, None] & real[:, None, :]
    own = jnp.diagonal(logits, axis1=1, axis2=2)
    logits = jnp.where(both, logits, _NOTHING)
    lse = (jax.nn.logsumexp(logits, axis=2) + jax.nn.logsumexp(logits, axis=1)) / 2
    sums = {"nll": lse - own, "tokens": jnp.ones_like(own)}
    return {key: jnp.sum(x, axis=1, where=real) for key, x in sums.items()}
