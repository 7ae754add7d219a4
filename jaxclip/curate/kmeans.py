"""Spherical k-means on a sample that fits into memory, by JAX: seeded, without empty clusters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.curate.vectors import unit

# Points [n, D], centroids [k, D] -> the nearest centroid of each, int32[n], and the cosines.
Assign = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

# Rows of one matrix product.
_CHUNK = 8192
# More centroids than this are drawn at random: k-means++ goes over its points once for each.
_PLUS_PLUS = 2048


def assign(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each point, by NumPy: workers leave the accelerator alone.

    Args:
      points: float32[n, D] of unit length.
      centroids: float32[k, D].

    Returns:
      int32[n] and float32[n], the cosines.
    """

    def nearest(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cosines = part @ centroids.T
        best = cosines.argmax(axis=1)
        return best, np.take_along_axis(cosines, best[:, None], axis=1)[:, 0]

    return _in_parts(nearest, points)


def assign_on_device(points: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`assign`, on JAX's device."""

    def nearest(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((_CHUNK, part.shape[1]), np.float32)
        padded[: len(part)] = part
        best, most = _nearest()(padded, centroids)
        return np.asarray(best)[: len(part)], np.asarray(most)[: len(part)]

    return _in_parts(nearest, points)


def _in_parts(
    nearest: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    cluster = np.empty(len(points), np.int32)
    cosine = np.empty(len(points), np.float32)
    for start in range(0, len(points), _CHUNK):
        part = slice(start, start + _CHUNK)
        cluster[part], cosine[part] = nearest(points[part])
    return cluster, cosine


@functools.cache
def _nearest() -> Callable[[Any, Any], tuple[Any, Any]]:
    import jax
    import jax.numpy as jnp

    @jax.jit
    def nearest(points: Any, centroids: Any) -> tuple[Any, Any]:
        cosines = jnp.matmul(points, centroids.T, precision="highest")
        return cosines.argmax(axis=1), cosines.max(axis=1)

    return nearest


def fit(
    points: np.ndarray,
    k: int,
    *,
    iterations: int = 20,
    seed: int = 0,
    assign: Assign = assign_on_device,
) -> np.ndarray:
    """Centroids of unit length.

    Args:
      points: float32[n, D] of unit length, in an order that is the same for the same points.
      k: number of centroids, at most n.
      iterations: of Lloyd's algorithm.
      seed: of the first centroids.
      assign: points, centroids -> clusters, cosines; workers give :func:`assign`.

    Returns:
      float32[k, D].

    Raises:
      ValueError: more centroids than points.
    """
    if k > len(points):
        raise ValueError(f"k={k} centroids need as many records; there are {len(points)}")
    points = unit(points)
    rng = np.random.default_rng(seed)
    centroids = _first(points, k, rng)
    for _ in range(iterations):
        cluster, cosine = assign(points, centroids)
        sums = np.zeros_like(centroids)
        order = np.argsort(cluster, kind="stable")
        found, firsts = np.unique(cluster[order], return_index=True)
        sums[found] = np.add.reduceat(points[order], firsts, axis=0)
        empty = np.flatnonzero(np.bincount(cluster, minlength=k) == 0)
        # An empty cluster begins anew at the point that its centroid fits worst.
        sums[empty] = points[np.argsort(cosine, kind="stable")[: len(empty)]]
        new = unit(sums)
        if np.array_equal(new, centroids):
            break
        centroids = new
    return centroids


def _first(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++, or for many centroids points at random."""
    if k > _PLUS_PLUS:
        return points[np.sort(rng.choice(len(points), k, replace=False))]
    some = points
    if len(points) > 32 * k:
        some = points[np.sort(rng.choice(len(points), 32 * k, replace=False))]
    chosen = [int(rng.integers(len(some)))]
    far = np.maximum(1 - some @ some[chosen[0]], 0)
    for _ in range(k - 1):
        total = far.sum(dtype=np.float64)
        # All points are centroids already: any other one.
        p = far / total if total > 1e-9 else np.full(len(some), 1 / len(some))
        at = np.searchsorted(np.cumsum(p, dtype=np.float64), rng.random(), side="right")
        chosen.append(int(np.minimum(at, len(some) - 1)))
        far = np.minimum(far, np.maximum(1 - some @ some[chosen[-1]], 0))
    return some[chosen]
