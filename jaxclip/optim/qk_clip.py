"""QK-Clip (MuonClip): cap attention logits by scaling the weights that make them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.optim import _base


def qk_clip(
    params: Any, largest: jax.Array, threshold: float | jax.Array = 100.0
) -> tuple[Any, jax.Array]:
    r"""Scales queries and keys of the heads whose attention logits are above a threshold.

    With S the largest logit :math:`q \cdot k / \sqrt d` of a head in the last forward pass, over
    the global batch, and τ the ``threshold``,

    .. math::

      \gamma = \min(1, \tau / S), \qquad
      W_q \leftarrow \sqrt\gamma\, W_q, \qquad W_k \leftarrow \sqrt\gamma\, W_k,

    for this head's columns of the kernels and elements of the biases (which the paper's models do
    not have). On the same inputs to the block its largest logit is then τ. It is done after the
    optimizer's update; moments stay as they are. With Muon and ``consistent_rms=0.2`` it is
    MuonClip. S is the signed maximum, as published.

    It is a function of parameters and no optax transformation, as it must know the forward pass:
    ``largest`` is :func:`jaxclip.models.attention_logits.largest_attention_logits`. With QK-norm
    in the tower it has no effect and no use.

    State: none. Cost: elementwise; that of ``largest`` is a forward pass of some examples.

    Args:
      params: of one tower: ``blocks_<i>/attention/<query or key>/<kernel or bias>``, kernels
        ``[C, C]`` and biases ``[C]`` with heads one after the other.
      largest: ``[depth, H]``, S of every block and head.
      threshold: τ.

    Returns:
      The parameters, and bool ``[depth, H]``: which heads were scaled. Heads whose S is not finite
      or not above τ stay as they were, to the bit.

    Raises:
      ValueError: a threshold that is not above 0, or another number of blocks than in ``largest``.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> linear = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
      >>> params = {"blocks_0": {"attention": {"query": linear, "key": linear}}}
      >>> new, scaled = optim.qk_clip(params, jnp.asarray([[250.0, 80.0]]))
      >>> [round(float(x), 4) for x in new["blocks_0"]["attention"]["query"]["bias"]]
      [0.6325, 0.6325, 1.0, 1.0]
      >>> scaled.tolist()
      [[True, False]]

    References:
      Kimi team, `Kimi K2 <https://arxiv.org/abs/2507.20534>`_, 2025, section 2.1.
    """
    _base.check_number("qk_clip.threshold", threshold, above=0)
    depth = sum(name.startswith("blocks_") for name in params)
    if depth != largest.shape[0]:
        raise ValueError(
            f"qk_clip: the tower has {depth} blocks, but largest is of shape {largest.shape}; "
            "give it the parameters of one tower and its [depth, num_heads]"
        )
    scaled = jnp.isfinite(largest) & (largest > threshold)
    factors = jnp.where(scaled, jnp.sqrt(threshold / jnp.where(scaled, largest, 1.0)), 1.0)
    new = dict(params)
    for block in range(depth):
        name = f"blocks_{block}"
        attention = dict(params[name]["attention"])
        for part in ("query", "key"):
            attention[part] = jax.tree.map(
                lambda leaf, by=factors[block]: _scale_heads(leaf, by), attention[part]
            )
        new[name] = {**params[name], "attention": attention}
    return new, scaled


def _scale_heads(leaf: jax.Array, factors: jax.Array) -> jax.Array:
    """A kernel ``[C, C]`` or bias ``[C]`` times one factor a head."""
    heads = leaf.reshape(*leaf.shape[:-1], factors.shape[0], -1)
    return (heads * factors[:, None]).reshape(leaf.shape).astype(leaf.dtype)
