"""Balanced token pruning: attention, diversity and places choose the patches that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.models.reductions._base import Prune, Stage, check_layers

# Shares of the quota of each stage that places, diversity and attention fill.
_SHARES = ((0.5, 0.3, 0.3), (0.0, 0.1, 0.9), (0.0, 0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class BTP(Prune):
    """Li et al. 2025 (arXiv:2505.22038), its selectors, for an image tower.

    Three stages, of which each leaves a share of the patches that the tower began with. In the
    first, half of the quota are places far from each other on the grid, and 30% each are the most
    different patches and those of most attention; the union is filled up by the most different
    ones. In the second 10% and 90% are by difference and attention, in the third all by attention.
    "Far" and "different" are greedy: the next one is that whose nearest chosen one is farthest, by
    Manhattan distance on the grid and by 1 - cos.

    Theirs prunes within a language model (LLaMA-7B: 576, 288, 144, 48 and no patches before layers
    4, 7, 15 and 23), and mends that model's liking for the last tokens; an image tower has no
    order, so that part is not here. What they do where the first union is more than the quota is
    not known; here places come first, then attention.

    Attributes:
      keep: share of all patches that each stage leaves.
      layers: the three blocks; empty for 4, 7 and 15 of 32, scaled to the depth.
    """

    keep: Sequence[float] = (0.5, 0.25, 1 / 12)
    layers: Sequence[int] = ()

    def __post_init__(self) -> None:
        kept = list(self.keep)
        if len(kept) != 3 or not all(0 < x <= 1 for x in kept) or kept != sorted(kept)[::-1]:
            raise ValueError(f"btp.keep={self.keep!r}: three shares in (0, 1] that do not rise")
        if len(self.layers) not in (0, 3):
            raise ValueError(f"btp.layers={self.layers!r}: name three blocks, or none")

    def stages(self, depth: int, grid: tuple[int, int]) -> list[Stage]:
        layers = tuple(self.layers)
        if not layers:
            found: list[int] = []
            for place in (4 / 32, 7 / 32, 15 / 32):
                found.append(max(round(place * depth), found[-1] + 1 if found else 0))
            layers = tuple(found)
        check_layers("btp", layers, depth)
        count = grid[0] * grid[1]
        quotas = [max(1, int(share * count + 1e-6)) for share in self.keep]
        spatial = far_places(grid, int(_SHARES[0][0] * quotas[0]))

        def stage(number: int) -> Stage:
            shares, quota = _SHARES[number], quotas[number]

            def select(scores: jax.Array, x: jax.Array, places: jax.Array) -> jax.Array:
                return balanced(scores, x, quota, shares[1:], spatial if number == 0 else None)

            return Stage(layers[number], select)

        return [stage(number) for number in range(3)]


def balanced(
    scores: jax.Array,
    x: jax.Array,
    quota: int,
    shares: tuple[float, float],
    places: np.ndarray | None = None,
) -> jax.Array:
    """Patches by places, attention and difference.

    Args:
      scores: float32[B, N], attention.
      x: [B, N, C], what differs.
      quota: how many, K.
      shares: of the quota, by difference and by attention.
      places: indices of patches that stay; None for none.

    Returns:
      int32[B, K].
    """
    batch, count = scores.shape
    if quota >= count:
        return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
    by_difference, by_attention = (int(share * quota + 1e-6) for share in shares)
    # The rank of each patch among the most different ones; only so many are ever needed.
    order = most_different(x, quota) if by_difference or places is not None else None
    # Patches stay by their points: the parts one after the other, within each the better ones.
    points = jnp.zeros((batch, count), jnp.float32)
    row = jnp.arange(batch)[:, None]
    if order is not None:
        rank = jnp.linspace(1.0, 0.5, quota)
        points = points.at[row, order].max(rank[None])
        points = points.at[row, order[:, :by_difference]].add(1.0)
    best, chosen = jax.lax.top_k(scores, by_attention)
    points = points.at[row, chosen].add(2.0 + best)
    if places is not None:
        points = points.at[:, places].add(8.0)
    # Without any other order, attention fills up.
    points = points + 1e-3 * scores
    return jax.lax.top_k(points, quota)[1].astype(jnp.int32)


def most_different(x: jax.Array, count: int) -> jax.Array:
    """Patches in the order of a greedy choice by 1 - cos.

    Args:
      x: [B, N, C].
      count: how many.

    Returns:
      int32[B, count]; the first one is that whose nearest other patch is farthest.
    """
    unit = x.astype(jnp.float32)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    distance = 1.0 - jnp.einsum("bnc,bmc->bnm", unit, unit, precision="highest")
    alone = distance + 4.0 * jnp.eye(x.shape[1])
    return farthest(distance, jnp.argmax(alone.min(axis=2), axis=1), count)


def farthest(distance: jax.Array, first: jax.Array, count: int) -> jax.Array:
    """Greedy choice of points far from each other.

    Args:
      distance: float32[B, N, N].
      first: int32[B], the first one.
      count: how many.

    Returns:
      int32[B, count]: each is that whose nearest chosen one is farthest, the first of equals.
    """
    batch = jnp.arange(len(distance))
    chosen = jnp.zeros((len(distance), count), jnp.int32).at[:, 0].set(first)

    def step(i: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, nearest = state
        following = jnp.argmax(nearest, axis=1).astype(jnp.int32)
        nearest = jnp.minimum(nearest, distance[batch, following]).at[batch, following].set(-1.0)
        return chosen.at[:, i].set(following), nearest

    nearest = distance[batch, first].at[batch, first].set(-1.0)
    return jax.lax.fori_loop(1, count, step, (chosen, nearest))[0]


def far_places(grid: tuple[int, int], count: int) -> np.ndarray:
    """Places of a grid far from each other, greedy by Manhattan distance from the first on.

    Returns:
      int32[count].
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    chosen: list[int] = []
    nearest = np.full(len(rows), np.inf)
    for _ in range(count):
        place = int(np.argmax(nearest))
        chosen.append(place)
        away = np.abs(rows - rows[place]) + np.abs(columns - columns[place])
        nearest = np.minimum(nearest, away)
        nearest[place] = -1
    return np.array(chosen, np.int32)
