"""Positions of patches: fixed tables, and learned tables at another size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Grid = tuple[int, int]


def sincos_positions(grid: int | Grid, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-d sine-cosine positions (Chen et al., 2021, MoCo v3; Beyer et al., 2022).

    Frequencies are temperature^(-i / (C/4 - 1)), as in Beyer et al.'s code (big_vision); MoCo v3's
    divides i by C/4.

    Args:
      grid: patches along a side, or (rows, columns).
      width: channels, a multiple of 4.
      temperature: ratio of the longest wavelength to the shortest, 2π patches.

    Returns:
      float32[rows * columns, width].

    Raises:
      ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"positions='sincos' needs a width divisible by 4, got {width}")
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    omega = 1.0 / temperature ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    angles = [np.outer(x, omega), np.outer(y, omega)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(
        np.float32
    )


def resize_positions(table: jax.Array, old: Grid, new: Grid, *, prefix: int = 0) -> jax.Array:
    """A table of learned positions for another grid of patches.

    Bicubic (Keys' kernel, a = -0.5) with antialiasing and half-pixel centres, as open_clip resizes
    position tables; the same method for all towers.

    Args:
      table: float[prefix + rows * columns, C].
      old: (rows, columns) that it is for.
      new: (rows, columns) wanted. The same as ``old``: the table itself.
      prefix: leading rows that belong to no patch (class token); they stay.

    Returns:
      float[prefix + new rows * new columns, C].
    """
    if old == new:
        return table
    patches = table[prefix:].reshape(*old, -1)
    resized = jax.image.resize(
        patches.astype(jnp.float32), (*new, patches.shape[-1]), method="bicubic", antialias=True
    )
    resized = resized.reshape(-1, patches.shape[-1]).astype(table.dtype)
    return jnp.concatenate([table[:prefix], resized]) if prefix else resized
