"""How far predictions are from their targets in direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.losses._base import unit


def cosine_distance(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over rows of 2 - 2 cos, the squared distance of unit rows (BYOL, arXiv:2006.07733).

    Args:
      predicted: float[B, D].
      target: float[B, D]; no gradient goes to it.

    Returns:
      float32[].
    """
    target = jax.lax.stop_gradient(target)
    return jnp.mean(2 - 2 * jnp.sum(unit(predicted) * unit(target), axis=-1))
