"""Exact top-k search in tiles: the one place where scores are computed and compared."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.shapes import check_shapes


def check_cutoffs(ks: Sequence[int]) -> None:
    """Raise ValueError unless all of at least one cut-off are integers from 1 on."""
    # The characters of a string are no integers; an array has no truth value.
    given = list(ks) if isinstance(ks, Sequence | np.ndarray) else []
    if not given or not all(isinstance(k, int | np.integer) and k >= 1 for k in given):
        raise ValueError(f"ks={ks!r} must be integers of at least 1, such as [1, 5]")


def top_k(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    query_tile: int = 1024,
    gallery_tile: int = 4096,
    devices: Sequence[Any] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows with the largest inner product with each query.

    Never holds more than a ``query_tile`` by ``gallery_tile`` matrix of scores. Of equal scores the
    one with the lower gallery index ranks first (as in a stable sort), whatever the tiles; a score
    that is NaN ranks last. A model that maps everything to one point therefore scores like a
    constant guess, not like a perfect one.

    Args:
      queries: float32[Q, D].
      gallery: float32[G, D], G > 0.
      k: how many, at least 1; no more than G are returned.
      query_tile: queries handled at once, over all devices.
      gallery_tile: gallery rows handled at once.
      devices: devices to spread the queries over (default: all of this process).

    Returns:
      ``(scores float32[Q, min(k, G)], indices int64[Q, min(k, G)])``, best first.

    Raises:
      ValueError: shapes that do not fit, an empty gallery, or k < 1.
    """
    queries = np.asarray(queries, np.float32)
    gallery = np.asarray(gallery, np.float32)
    check_shapes("top_k", queries=(queries, "Q D"), gallery=(gallery, "G D"))
    if not isinstance(k, int | np.integer) or k < 1 or not len(gallery):
        raise ValueError(f"k={k} of a gallery of {len(gallery)}; both must be at least 1")
    if query_tile < 1 or gallery_tile < 1:
        raise ValueError(f"{query_tile=}, {gallery_tile=}: both must be at least 1")
    k = min(k, len(gallery))
    if not len(queries):
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)

    devices = list(devices or jax.local_devices())
    mesh = Mesh(np.array(devices), ("query",))
    rows, replicated = NamedSharding(mesh, P("query")), NamedSharding(mesh, P())
    # No tile larger than needed, yet the same shape for all of them: one compilation.
    query_tile = _round_up(min(query_tile, len(queries)), len(devices))
    gallery_tile = max(min(gallery_tile, len(gallery)), k)
    tiles = [
        (
            jax.device_put(_pad(gallery[start : start + gallery_tile], gallery_tile), replicated),
            np.int32(start),
            np.int32(min(gallery_tile, len(gallery) - start)),
        )
        for start in range(0, len(gallery), gallery_tile)
    ]
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), query_tile):
        chunk = queries[start : start + query_tile]
        on_device = jax.device_put(_pad(chunk, query_tile), rows)
        best = (
            jax.device_put(np.full((query_tile, k), -np.inf, np.float32), rows),
            jax.device_put(np.full((query_tile, k), -1, np.int32), rows),
        )
        for tile, offset, valid in tiles:
            best = _merge(best, on_device, tile, offset, valid, k=k)
        stop = start + len(chunk)
        scores[start:stop] = np.asarray(best[0])[: len(chunk)]
        indices[start:stop] = np.asarray(best[1])[: len(chunk)]
    return scores, indices


@functools.partial(jax.jit, static_argnames=("k",))
def _merge(
    best: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    tile: jax.Array,
    offset: jax.Array,
    valid: jax.Array,
    *,
    k: int,
) -> tuple[jax.Array, jax.Array]:
    """Merge a gallery tile into the running top k.

    Args:
      best: scores float32[q, k] and gallery indices int32[q, k] (-1: none yet) so far.
      queries: float32[q, D].
      tile: float32[g, D].
      offset: int32[], gallery index of the tile's first row.
      valid: int32[], how many of the tile's rows are no padding.
      k: static.

    Returns:
      The same of the gallery up to the end of the tile.
    """
    scores = jnp.einsum("qd,gd->qg", queries, tile, precision=jax.lax.Precision.HIGHEST)
    index = jnp.arange(tile.shape[0], dtype=jnp.int32)
    # Real rows get finite scores, so that padding (-inf) loses even against NaN.
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where(jnp.isnan(scores), lowest, jnp.maximum(scores, lowest))
    scores = jnp.where(index < valid, scores, -jnp.inf)
    # top_k puts the lower position first among equals. The padding comes after all real rows, and
    # what earlier tiles found comes before this tile's rows: position order is index order.
    tile_scores, position = jax.lax.top_k(scores, k)
    tile_indices = jnp.where(position < valid, position + offset, -1)
    merged = jnp.concatenate([best[0], tile_scores], axis=1)
    merged_indices = jnp.concatenate([best[1], tile_indices], axis=1)
    merged, position = jax.lax.top_k(merged, k)
    return merged, jnp.take_along_axis(merged_indices, position, axis=1)


def whole_numbers(what: str, name: str, values: Any, below: int | None = None) -> np.ndarray:
    """Numbers of rows or classes as int64, whatever integers they are.

    Args:
      what: the function, for errors.
      name: of its argument.
      values: integers, or floats without a fraction.
      below: what they must be less than; None for any.

    Raises:
      ValueError: fractions, NaN, text, or a number that is not below the limit.
    """
    given = np.asarray(values)
    if given.dtype.kind not in "biuf" or (given.dtype.kind == "f" and np.any(given % 1 != 0)):
        raise ValueError(f"{what}: {name} are {given.dtype}, not whole numbers")
    if below is not None and given.size and given.max() >= below:
        raise ValueError(f"{what}: {name} has {int(given.max())}, but there are only {below}")
    return given.astype(np.int64)


def hits_at(hits: np.ndarray, ks: Sequence[int]) -> dict[int, int]:
    """How many rows have a hit among their first k.

    Args:
      hits: bool[Q, K], whether the retrieved row counts, best first.
      ks: cut-offs; one beyond K counts all K.

    Returns:
      ``{k: int}``.
    """
    return {k: int(np.count_nonzero(hits[:, :k].any(axis=1))) for k in ks}


def _pad(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, ((0, length - len(rows)), (0, 0)))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
