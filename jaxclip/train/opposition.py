"""Which examples of a batch pull against which: opposing signals (Rosenfeld & Risteski, 2023).

Spikes come of groups of examples whose gradients are large and point against each other
(arXiv:2311.04163): a step that helps one of them hurts the other. For each example of a batch the
contrastive loss (mean of both directions) is compared before and after a step down the batch's own
gradient. The losses that fall most and those that rise most are the two groups, and the cosine of
their mean gradients says how much they oppose each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any
Batch = Mapping[str, jax.Array]
ValueAndGrad = Callable[[Params, Batch], tuple[tuple[jax.Array, Any], Params]]

WEIGHT = "opposition/weight"


class Opposition(NamedTuple):
    """What was found.

    Attributes:
      loss: float32[B] of each example, before the step.
      change: float32[B], by how much the step changed it.
      falling: int32[k], the rows that fall most, the steepest first.
      rising: int32[k], the rows that rise most, the steepest first.
      cosine: float32[], of the two groups' mean gradients; near -1 where they oppose.
      share: float32[2], length of each group's part of the gradient (k / B of its mean gradient),
        as a share of the batch's.
    """

    loss: jax.Array
    change: jax.Array
    falling: jax.Array
    rising: jax.Array
    cosine: jax.Array
    share: jax.Array


def example_losses(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """CLIP's loss of each pair against its batch: float32[B], their mean the softmax loss."""
    logits = jnp.exp(logit_scale) * jnp.matmul(image, text.T, precision="highest")
    positive = jnp.diagonal(logits)
    rows, columns = (jax.nn.logsumexp(logits, axis=axis) for axis in (1, 0))
    return (rows + columns) / 2 - positive


def opposition(
    value_and_grad: ValueAndGrad, params: Params, batch: Batch, *, length: Any, group: int
) -> Opposition:
    """Compare the examples of a batch.

    Args:
      value_and_grad: ``(params, batch) -> ((loss, losses float32[B]), gradients)``, the loss being
        the mean of ``batch[WEIGHT] * losses``.
      params: of the model.
      batch: arrays with leading axis B.
      length: of the step down the gradient, as a vector of all parameters: that of the run's last
        update.
      group: k, examples in each group.
    """
    ones = jnp.ones(next(iter(batch.values())).shape[0], jnp.float32)
    (_, before), grads = value_and_grad(params, {**batch, WEIGHT: ones})
    norm = optax.tree.norm(grads)
    scale = length / jnp.maximum(norm, 1e-30)
    moved = jax.tree.map(lambda p, g: (p - scale * g).astype(p.dtype), params, grads)
    (_, after), _ = value_and_grad(moved, {**batch, WEIGHT: ones})
    change = after - before
    order = jnp.argsort(change).astype(jnp.int32)
    falling, rising = order[:group], order[::-1][:group]
    count = ones.shape[0]

    def mean_gradient(rows: jax.Array) -> Params:
        weight = jnp.zeros(count, jnp.float32).at[rows].set(count / group)
        return value_and_grad(params, {**batch, WEIGHT: weight})[1]

    one, other = mean_gradient(falling), mean_gradient(rising)
    lengths = jnp.stack([optax.tree.norm(one), optax.tree.norm(other)])
    product = optax.tree.vdot(one, other)
    return Opposition(
        loss=before,
        change=change,
        falling=falling,
        rising=rising,
        cosine=product / jnp.maximum(lengths[0] * lengths[1], 1e-30),
        share=lengths * (group / count) / jnp.maximum(norm, 1e-30),
    )
