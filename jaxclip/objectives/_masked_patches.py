"""Which patches of each row a mask token replaces, for methods that tell what stood there."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.models import Insert
from jaxclip.objectives._base import Context


def places(ctx: Context, ratio: float) -> jax.Array:
    """int32[B, M]: patches that are drawn one by one for each row, at least one.

    Args:
      ctx: of the term; the same rows have the same patches however the batch is cut.
      ratio: share of the patches, below 1.
    """
    count = ctx.sizes.image.grid**2
    noise = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(ctx.row_keys())
    return jnp.argsort(noise, axis=1)[:, : max(1, int(ratio * count))]


def replaced(at: jax.Array, token: jax.Array) -> Insert:
    """A tower's ``insert`` that puts a mask token [C] at places int32[B, M]."""
    return Insert({0: jnp.broadcast_to(token, (at.shape[1], len(token)))}, at=at)
