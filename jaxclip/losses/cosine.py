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

    Raises:
      ValueError: shapes that do not fit.
    """
    if jnp.shape(predicted) != jnp.shape(target) or jnp.ndim(target) < 2:
        raise ValueError(
            f"cosine_distance: predicted {list(jnp.shape(predicted))} and target "
            f"{list(jnp.shape(target))} must be [B, D] both"
        )
    target = jax.lax.stop_gradient(target)
    return jnp.mean(2 - 2 * jnp.sum(unit(predicted) * unit(target), axis=-1))
