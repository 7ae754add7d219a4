"""FEATHER: attention without positions and a uniform grid choose the patches that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.models.reductions._base import Prune, Stage, check_layers


@dataclasses.dataclass(frozen=True)
class Feather(Prune):
    """Endo, Wang and Yeung-Levy 2024 (arXiv:2412.13180), for an image tower.

    In front of the first layer the best floor(N (1 - ratio)) patches stay, and a grid of every
    stride-th row and column; in front of the second the best floor(N' (1 - ratio)^2) of the N' that
    are left. Theirs prunes within a language model by its last token's attention, at layers 8 and
    16 of 32. Where a patch of the grid is among the best, the next best one stays as well, so that
    shapes are fixed: floor(N (1 - ratio)) patches besides the grid.

    Attributes:
      ratio: R, the share that is left out in the first step.
      stride: of the grid.
      layers: the two blocks; empty for a quarter and a half of the depth.
    """

    ratio: float = 0.7
    stride: int = 3
    layers: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"feather.ratio={self.ratio!r} must be in [0, 1)")
        if self.stride < 1:
            raise ValueError(f"feather.stride={self.stride!r} must be at least 1")
        if len(self.layers) not in (0, 2):
            raise ValueError(f"feather.layers={self.layers!r}: name two blocks, or none")

    def stages(self, depth: int, grid: tuple[int, int]) -> list[Stage]:
        layers = tuple(self.layers) or (depth // 4, max(depth // 2, depth // 4 + 1))
        check_layers("feather", layers, depth)
        count = grid[0] * grid[1]
        uniform = uniform_grid(grid, self.stride)
        first = min(count, _share(count, 1 - self.ratio) + int(uniform.sum()))
        second = max(1, _share(first, (1 - self.ratio) ** 2))

        def with_grid(scores: jax.Array, x: jax.Array, places: jax.Array) -> jax.Array:
            return best(scores + 2.0 * jnp.asarray(uniform)[places], first)  # scores are below 1

        def alone(scores: jax.Array, x: jax.Array, places: jax.Array) -> jax.Array:
            return best(scores, second)

        return [Stage(layers[0], with_grid), Stage(layers[1], alone)]


def uniform_grid(grid: tuple[int, int], stride: int) -> np.ndarray:
    """float32[rows * columns], 1 for the patches of every stride-th row and column."""
    rows, columns = (np.arange(side) % stride == 0 for side in grid)
    return (rows[:, None] & columns[None, :]).reshape(-1).astype(np.float32)


def best(scores: jax.Array, count: int) -> jax.Array:
    """int32[B, count], the patches of the highest scores."""
    return jax.lax.top_k(scores, count)[1].astype(jnp.int32)


def _share(count: int, share: float) -> int:
    """floor(count * share), where rounding does not make 2 of 1.9999999."""
    return int(count * share + 1e-6)
