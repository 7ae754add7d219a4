"""Cross-entropy and Kullback-Leibler divergence to targets that are distributions.

For distillation: the target of a row is what a teacher's softmax says of all columns, not its own
column alone. They hold the matrices of logits and targets.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.losses._base import as_float, matmul


def products(a: jax.Array, b: jax.Array, *, precision: str = "highest") -> jax.Array:
    """a bᵀ in at least float32: cosines where the rows have unit length.

    Args:
      a: float[N, D].
      b: float[M, D].
      precision: as :func:`jaxclip.losses.softmax`.

    Returns:
      float32[N, M].
    """
    a, b = as_float(a, b)
    return matmul(a, b.T, precision)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of each row: -Σ_j targets_ij log softmax(logits)_ij.

    Args:
      logits: float32[B, N].
      targets: float32[B, N], rows that sum to 1.

    Returns:
      float32[B].
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def soft_kl(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """KL(targets ‖ softmax(logits)) of each row: the cross-entropy less the targets' entropy.

    It has the cross-entropy's gradient with respect to the logits, and is 0 where both agree.

    Args:
      logits: float32[B, N].
      targets: float32[B, N], rows that sum to 1; zeros are allowed.

    Returns:
      float32[B].
    """
    entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets), axis=-1)
    return soft_cross_entropy(logits, targets) - entropy
