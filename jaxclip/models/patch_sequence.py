"""Patches of pictures of any aspect ratio as one batch (NaFlex; SigLIP 2, arXiv:2502.14786)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PatchSequence(NamedTuple):
    """What a tower with ``max_patches`` takes in place of pictures of one size.

    Attributes:
      patches: [B, N, p * p * 3], row by row, each patch [p, p, 3] flattened.
      valid: bool[B, N], False for padding.
      grid: int32[B, 2], rows and columns of each picture; its patches are the first
        ``rows * columns`` places.
    """

    patches: jax.Array
    valid: jax.Array
    grid: jax.Array


def sequence_positions(table: jax.Array, side: int, grid: jax.Array, length: int) -> jax.Array:
    """A square table of positions, resized to the grid of each picture.

    Bilinear with antialiasing and half-pixel centres, as SigLIP 2 does it: the weights of
    ``jax.image.resize(method="bilinear")``, but for grids that are data. One program serves all
    grids of a length.

    Args:
      table: float[side * side, C].
      side: of its grid.
      grid: int32[B, 2], rows and columns.
      length: places of a sequence, N.

    Returns:
      float32[B, N, C]; places behind ``rows * columns`` get the position of the first patch.
    """
    sizes = jnp.asarray(grid, jnp.int32)
    place = jnp.arange(length, dtype=jnp.int32)
    place = jnp.where(place < jnp.prod(sizes, axis=1, keepdims=True), place, 0)  # [B, N]
    columns = jnp.maximum(sizes[:, 1:], 1)
    by_row = _weights(place // columns, sizes[:, :1], side)
    by_column = _weights(place % columns, sizes[:, 1:], side)
    weights = by_row[..., :, None] * by_column[..., None, :]  # [B, N, side, side]
    flat = weights.reshape(*weights.shape[:2], side * side)
    return jnp.matmul(flat, table.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def _weights(place: jax.Array, size: jax.Array, side: int) -> jax.Array:
    """Weights of ``side`` old places: int32[B, N], int32[B, 1] -> float32[B, N, side]."""
    scale = side / jnp.maximum(size, 1).astype(jnp.float32)
    centre = (place.astype(jnp.float32) + 0.5) * scale - 0.5
    support = jnp.maximum(scale, 1.0)
    old = jnp.arange(side, dtype=jnp.float32)
    distance = jnp.abs(old - centre[..., None]) / support[..., None]
    weights = jnp.maximum(1.0 - distance, 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)
