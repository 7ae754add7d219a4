"""Averages of stored rows by softmax of their products with queries, plain and by tiles.

It is attention over the global batch without heads: a modern Hopfield network's retrieval
(Ramsauer et al. 2021, arXiv:2008.02217). By tiles it is FlashAttention (Dao et al. 2022,
arXiv:2205.14135) on the ring of :mod:`jaxclip.losses.ring`: sums and maxima are corrected as
stored rows come by, and weights are made anew in the backward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import blockwise, ring
from jaxclip.losses._base import as_pairs, matmul


def retrieve(
    queries: jax.Array,
    stored: jax.Array,
    beta: jax.Array | float,
    *,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> jax.Array:
    """softmax(beta · q Xᵀ) X.

    Args:
      queries: float[B, D], q, the global batch.
      stored: float[B, D], X.
      beta: sharpness; it carries no gradient.
      precision: of the matrix products, as :func:`jaxclip.losses.softmax`.
      implementation: ``"plain"``, or ``"blockwise"``: no matrix is held, and memory on a device is
        that of its rows.
      tile_size: rows and columns of the largest block of weights held at a time.
      mesh: mesh over which the batch is sharded, for ``"blockwise"``.

    Returns:
      float32[B, D], not of unit length.

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit.
    """
    queries, stored = as_pairs("retrieve", queries=queries, stored=stored)
    beta = jax.lax.stop_gradient(jnp.asarray(beta, queries.dtype))
    if implementation == "plain":
        weights = jax.nn.softmax(beta * matmul(queries, stored.T, precision))
        return matmul(weights, stored, precision)
    if implementation != "blockwise":
        raise ValueError(f"implementation={implementation!r}; use 'plain' or 'blockwise'")
    static = blockwise.Static(ring.plan(len(queries), tile_size, mesh), mesh, precision)
    return _retrieve(static, beta * queries, stored)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _retrieve(static: blockwise.Static, queries: jax.Array, stored: jax.Array) -> jax.Array:
    return _sweep(static, queries, stored)[0]


@functools.partial(jax.jit, static_argnums=(0,))
def _sweep(static: blockwise.Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The averages [B, D] and the log-sum-exp [B] of each query's logits."""

    def local(queries: jax.Array, stored: jax.Array) -> tuple[jax.Array, ...]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, None]:
            peak, total, mixed = state
            logits = jnp.where(pairs.real(), static.dot(rows, columns.T), -jnp.inf)
            new = jnp.maximum(peak, jnp.max(logits, axis=1))
            shift = blockwise.finite(new)
            weights, kept = jnp.exp(logits - shift[:, None]), jnp.exp(peak - shift)
            total = kept * total + jnp.sum(weights, axis=1)
            return (new, total, kept[:, None] * mixed + static.dot(weights, columns)), None

        zeros = jnp.zeros_like(queries[..., 0])
        start = (jnp.full_like(zeros, -jnp.inf), zeros, jnp.zeros_like(queries))
        (peak, total, mixed), _ = ring.sweep(
            tile, queries, stored, start, None, ring.nothing, static.layout
        )
        # A row of padding has seen no pair where its device has padding alone.
        safe = jnp.maximum(total, jnp.finfo(total.dtype).tiny)
        return mixed / safe[..., None], blockwise.finite(peak) + jnp.log(safe)

    return ring.sharded(local, static.layout, static.mesh, (True, True))(*arrays)


def _forward(static: blockwise.Static, queries: jax.Array, stored: jax.Array) -> tuple[Any, Any]:
    mixed, lse = _sweep(static, queries, stored)
    return mixed, (queries, stored, mixed, lse)


@functools.partial(jax.jit, static_argnums=(0,))
def _gradients(static: blockwise.Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    def local(
        queries: jax.Array,
        stored: jax.Array,
        mixed: jax.Array,
        lse: jax.Array,
        cotangent: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            query, lse, cotangent, mean = rows
            logits = static.dot(query, columns.T) - lse[:, None]
            weights = jnp.where(pairs.real(), jnp.exp(logits), 0.0)
            grad = weights * (static.dot(cotangent, columns.T) - mean[:, None])
            to_column = static.dot(grad.T, query) + static.dot(weights.T, cotangent)
            return state + static.dot(grad, columns), to_column

        mean = jnp.sum(mixed * cotangent, axis=-1)
        return ring.sweep(
            tile,
            (queries, lse, cotangent, mean),
            stored,
            jnp.zeros_like(queries),
            jnp.zeros_like(stored),
            jnp.add,
            static.layout,
        )

    return ring.sharded(local, static.layout, static.mesh, (True, True))(*arrays)


def _backward(static: blockwise.Static, residuals: Any, cotangent: jax.Array) -> Any:
    return _gradients(static, *residuals, cotangent)


_retrieve.defvjp(_forward, _backward)
