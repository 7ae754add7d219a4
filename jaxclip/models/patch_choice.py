"""Which patches of a picture run, by a score of each."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def best_blocks(scores: jax.Array, grid: int, block: int, share: float) -> jax.Array:
    """Patches of the blocks with the best mean score, ascending.

    Args:
      scores: float32[B, grid * grid].
      grid: patches along a side.
      block: patches along a side of a block; divides ``grid``.
      share: floor(share * blocks) + 1 blocks are taken, at most all.

    Returns:
      int32[B, K].
    """
    side = grid // block
    means = scores.reshape(-1, side, block, side, block).mean((2, 4)).reshape(-1, side**2)
    count = min(int(share * side**2) + 1, side**2)
    _, chosen = jax.lax.top_k(means, count)
    row, column = chosen // side, chosen % side
    inside = jnp.arange(block)
    rows = row[:, :, None, None] * block + inside[:, None]
    columns = column[:, :, None, None] * block + inside
    patches = (rows * grid + columns).reshape(len(scores), -1)
    return jnp.sort(patches, axis=1).astype(jnp.int32)
