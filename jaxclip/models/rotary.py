"""Rotary positions of patches: queries and keys turned by where they are in the picture.

Su et al. (2021, RoFormer, arXiv:2104.09864), in two dimensions as EVA-02 has it (Fang et al., 2023,
arXiv:2303.11331) and Perception Encoder (Bolya et al., 2025, arXiv:2504.13181).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.models.positions import Grid

TEMPERATURE = 10_000.0


def angles(
    grid: Grid, head_dim: int, order: str, *, reference: int = 0, offset: float = 0.0
) -> np.ndarray:
    """By how much each pair of channels of a head is turned, for every patch.

    The first half of the pairs turns by one coordinate, the second half by the other, pair i of a
    half by ``coordinate / 10000^(4 i / head_dim)``.

    Args:
      grid: (rows, columns).
      head_dim: channels of a head, a multiple of 4.
      order: ``"yx"`` (row first) or ``"xy"``.
      reference: patches along a side that coordinates are stretched to; 0 for those of the grid.
      offset: added to the coordinates before that.

    Returns:
      float32[rows * columns, head_dim / 2].

    Raises:
      ValueError: a head whose channels are no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {head_dim}")
    bands = head_dim // 4
    exponents = np.arange(bands, dtype=np.float32) / np.float32(bands)
    frequencies = (1 / np.float32(TEMPERATURE) ** exponents).astype(np.float32)
    sides = []
    for size in grid:
        place = np.arange(size, dtype=np.float32) + np.float32(offset)
        sides.append(place / np.float32(size) * np.float32(reference) if reference else place)
    y, x = np.meshgrid(*sides, indexing="ij")
    places = np.stack([y, x] if order == "yx" else [x, y], axis=-1).reshape(-1, 2, 1)
    return (places * frequencies).reshape(-1, head_dim // 2)


def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Turn neighbouring channels (0, 1), (2, 3), … of every head.

    Args:
      x: [B, L, H, d].
      turns: float32[L, d / 2] or [B, L, d / 2], radians; a token with zeros stays as it is.

    Returns:
      [B, L, H, d]; computed in float32.
    """
    cos, sin = (f(turns)[..., None, :] for f in (jnp.cos, jnp.sin))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
