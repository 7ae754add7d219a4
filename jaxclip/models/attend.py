"""Attention by its weights, and what a caller changes in a block's attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Added to the score of a pair that is masked. Finite, so that a row without any pair stays finite.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

# (query, key, value, bias) -> weights; the arrays are [B, H, L, d], the bias as in
# :func:`softmax_weights`, the weights float32[B or 1, H or 1, L, L] (rows need not sum to 1).
AttendFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


class Attend(NamedTuple):
    """What a block does in place of its own attention.

    Attributes:
      fn: makes the attention weights from queries, keys and values (:data:`AttendFn`); None for
        the block's own. The bias that it gets holds the causal and padding masks, too.
      residual: whether the block's input is added to what attention gives.
      mlp: whether the MLP (and its own residual) follows.
    """

    fn: AttendFn | None = None
    residual: bool = True
    mlp: bool = True


class How(NamedTuple):
    """What a caller changes in a block; the default changes nothing.

    Attributes:
      bias: float32, broadcast to [B, H, L, L], added to the scores; None for nothing.
      attend: another attention and the switches of residual and MLP.
      weights: whether the attention weights are returned.
      largest: whether each row's largest attention logits are returned.
      sums: whether sums of the MLP's activations are returned.
    """

    bias: jax.Array | None = None
    attend: Attend = Attend()
    weights: bool = False
    largest: bool = False
    sums: bool = False


UNCHANGED = How()


class Taken(NamedTuple):
    """What was read of a block's attention and MLP.

    Attributes:
      weights: float32[B, H, Q, K], or None.
      largest: float32[B, H], the largest q·k / sqrt(d) of the pairs that see each other, without a
        gradient; or None.
      router: float32[B, k + 2, E] of a block with experts (:mod:`jaxclip.models.experts`), or None.
      sums: float32[B, 2] of a block with an MLP (:func:`jaxclip.models.layers.activation_sums`), or
        None.
    """

    weights: jax.Array | None = None
    largest: jax.Array | None = None
    router: jax.Array | None = None
    sums: jax.Array | None = None


def softmax_weights(
    query: jax.Array, key: jax.Array, bias: jax.Array | None = None, soft_cap: float = 0.0
) -> jax.Array:
    """softmax(Q K^T / sqrt(d) + bias) over keys, in float32.

    ``softmax_weights(q, q, bias)`` and ``softmax_weights(k, k, bias)`` are the self-self attention
    of dense methods (SCLIP, ClearCLIP, NACLIP).

    Args:
      query: [B, H, Q, d].
      key: [B, H, K, d].
      bias: broadcast to [B, H, Q, K], or None.
      soft_cap: c, before the bias scores become c tanh(scores / c); 0 for none.

    Returns:
      float32[B, H, Q, K].
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if soft_cap:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    return jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)


def own_weights(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    soft_cap: float = 0.0,
) -> jax.Array:
    """:func:`softmax_weights` with the signature of :class:`Attend`'s function."""
    del value
    return softmax_weights(query, key, bias, soft_cap)


def largest_scores(
    query: jax.Array, key: jax.Array, num_heads: int, mask: jax.Array | None, causal: bool
) -> jax.Array:
    """The largest q·k / sqrt(d) of each row and head, of pairs that see each other.

    Args:
      query: [B, Q, C].
      key: [B, K, C].
      num_heads: H.
      mask: bool, broadcast to [B, H, Q, K], or None.
      causal: no token sees those behind it.

    Returns:
      float32[B, H], without a gradient.
    """
    query, key = jax.lax.stop_gradient((query, key))
    query, key = split_heads(query, num_heads), split_heads(key, num_heads)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    hidden = score_bias(None, mask, causal, (query.shape[2], key.shape[2]))
    if hidden is not None:
        scores = jnp.where(hidden < 0, -jnp.inf, scores)
    return jnp.max(scores, axis=(2, 3))


def score_bias(
    bias: jax.Array | None, mask: jax.Array | None, causal: bool, shape: tuple[int, int]
) -> jax.Array | None:
    """Masks as a bias of the scores, added to a given one: float32[B or 1, H or 1, Q, K] or None.

    Args:
      bias: broadcast to [B, H, Q, K], or None.
      mask: bool, broadcast to [B, H, Q, K], or None.
      causal: no token sees those behind it.
      shape: (Q, K).
    """
    if causal:
        past = jnp.tril(jnp.ones(shape, bool))[None, None]
        mask = past if mask is None else mask & past
    if mask is None:
        return bias
    masked = jnp.where(mask, 0.0, MASKED)
    return masked if bias is None else jnp.where(mask, bias, masked)


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, C] -> [B, H, L, C / H]."""
    return x.reshape(*x.shape[:2], num_heads, -1).swapaxes(1, 2)


def join_heads(x: jax.Array) -> jax.Array:
    """[B, H, L, d] -> [B, L, H d]."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
