"""Clusters of the last features of a run: k-means inside a compiled step, once an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def nearest(rows: jax.Array, centroids: jax.Array, *, batch_size: int = 4096) -> jax.Array:
    """Index of the nearest centroid of each row, by Euclidean distance.

    Args:
      rows: float32[N, D].
      centroids: float32[K, D].
      batch_size: rows whose distances are held at a time.

    Returns:
      int32[N].
    """
    squares = jnp.sum(centroids * centroids, axis=-1)

    def index(row: jax.Array) -> jax.Array:
        products = jnp.matmul(centroids, row, precision="highest")
        return jnp.argmin(squares - 2.0 * products).astype(jnp.int32)

    return jax.lax.map(index, rows, batch_size=min(batch_size, len(rows)))


def means(
    rows: jax.Array, labels: jax.Array, num_clusters: int, empty: jax.Array | float
) -> jax.Array:
    """Mean of the rows of each label.

    Args:
      rows: float32[N, D].
      labels: int32[N] in [0, num_clusters).
      num_clusters: K.
      empty: float32[K, D] or a scalar: what a label without rows has.

    Returns:
      float32[K, D].
    """
    sums = jax.ops.segment_sum(rows, labels, num_segments=num_clusters)
    counts = jax.ops.segment_sum(jnp.ones(len(rows)), labels, num_segments=num_clusters)[:, None]
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), empty)


def kmeans(
    key: jax.Array, rows: jax.Array, num_clusters: int, *, iterations: int = 20, restarts: int = 3
) -> tuple[jax.Array, jax.Array]:
    """Cluster rows; of some restarts the one with the least sum of squared distances.

    A centroid that loses all its rows stays where it is.

    Args:
      key: draws the rows that are the first centroids.
      rows: float32[N, D] with N at least ``num_clusters``.
      num_clusters: K.
      iterations: of assignment and mean.
      restarts: how often it begins anew.

    Returns:
      ``(centroids float32[K, D], labels int32[N])``.
    """

    def once(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        first = rows[jax.random.choice(key, len(rows), (num_clusters,), replace=False)]

        def iteration(_: int, centroids: jax.Array) -> jax.Array:
            return means(rows, nearest(rows, centroids), num_clusters, centroids)

        centroids = jax.lax.fori_loop(0, iterations, iteration, first)
        labels = nearest(rows, centroids)
        return jnp.sum((rows - centroids[labels]) ** 2), centroids, labels

    costs, centroids, labels = jax.lax.map(once, jax.random.split(key, restarts))
    best = jnp.argmin(costs)
    return centroids[best], labels[best]


def start(towers: tuple[str, str], episode_size: int, num_clusters: int, size: int) -> Any:
    """The state before the first batch, a dict of arrays; everything in it is zero.

    Args:
      towers: names of the two modalities.
      episode_size: features N that are kept of each.
      num_clusters: K of each.
      size: length D of a feature.

    Returns:
      ``place`` int32[], where the next feature goes; ``episodes`` int32[], how many are over; and
      for each tower ``bank`` float32[N, D], ``centroids`` float32[K, D] of its own clusters and
      ``prototypes`` float32[K, D]: means of its features by the other modality's cluster, 0 where
      there is none.
    """
    rows = {"bank": episode_size, "centroids": num_clusters, "prototypes": num_clusters}
    zeros = {name: {t: jnp.zeros((n, size)) for t in towers} for name, n in rows.items()}
    return {"place": jnp.zeros((), jnp.int32), "episodes": jnp.zeros((), jnp.int32), **zeros}


def advance(state: Any, features: Mapping[str, jax.Array], key: jax.Array) -> Any:
    """The state with a batch's features and, if they end an episode, with new clusters.

    Args:
      state: from :func:`start` or this function.
      features: float32[B, D] by tower, B at most the bank's N.
      key: for k-means.
    """
    one, two = features
    size, batch = len(state["bank"][one]), len(features[one])
    places = (state["place"] + jnp.arange(batch)) % size
    bank = {t: state["bank"][t].at[places].set(features[t]) for t in features}
    number = len(state["centroids"][one])

    def clusters() -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        keys = jax.random.split(key)
        centroids_one, labels_one = kmeans(keys[0], bank[one], number)
        centroids_two, labels_two = kmeans(keys[1], bank[two], number)
        prototypes = {
            one: means(bank[one], labels_two, number, 0.0),
            two: means(bank[two], labels_one, number, 0.0),
        }
        return {one: centroids_one, two: centroids_two}, prototypes

    end = state["place"] + batch
    old = state["centroids"], state["prototypes"]
    centroids, prototypes = jax.lax.cond(end >= size, clusters, lambda: old)
    return {
        "place": end % size,
        "episodes": state["episodes"] + end // size,
        "bank": bank,
        "centroids": centroids,
        "prototypes": prototypes,
    }
