"""Hinges over a row's wrong columns and the largest of them, plain and by tiles."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import blockwise, ring
from jaxclip.losses._base import as_pairs, as_scalar, matmul
from jaxclip.shapes import check_shapes


def hinge(
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    *,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ_{j≠i} relu(x_ij + offset_i) and max_{j≠i} x_ij of the logits x = scale · a bᵀ.

    Args:
      a: float[B, D], rows, the global batch.
      b: float[B, D], columns.
      scale: float32[], factor on the products.
      offset: float32[B].
      precision: of the matrix products, as :func:`jaxclip.losses.softmax`.
      implementation: ``"plain"``, or ``"blockwise"``: no matrix is held, and memory on a device is
        that of its rows. Of equal largest logits one has the gradient then, where ``"plain"``
        shares it out.
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded, for ``"blockwise"``.

    Returns:
      ``(float32[B], float32[B])``; the largest of none is -inf.

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit.
    """
    a, b = as_pairs("hinge", a=a, b=b)
    check_shapes("hinge", a=(a, "B D"), offset=(offset, "B"))
    scale, offset = as_scalar("hinge", "scale", scale, a.dtype), jnp.asarray(offset, a.dtype)
    if implementation == "plain":
        logits, other = scale * matmul(a, b.T, precision), ~jnp.eye(len(a), dtype=bool)
        above = jnp.where(other, jax.nn.relu(logits + offset[:, None]), 0.0)
        return jnp.sum(above, axis=1), jnp.max(jnp.where(other, logits, -jnp.inf), axis=1)
    if implementation != "blockwise":
        raise ValueError(f"implementation={implementation!r}; use 'plain' or 'blockwise'")
    static = blockwise.Static(ring.plan(len(a), tile_size, mesh), mesh, precision)
    return _hinge(static, a, b, scale, offset)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hinge(
    static: blockwise.Static, a: jax.Array, b: jax.Array, scale: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return _sweep(static, a, b, scale, offset)[:2]


@functools.partial(jax.jit, static_argnums=(0,))
def _sweep(static: blockwise.Static, *arrays: jax.Array) -> Any:
    """Sums and maxima, and the column of each maximum, int32[B]."""

    def local(a: jax.Array, b: jax.Array, scale: jax.Array, offset: jax.Array) -> Any:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, None]:
            row, own = rows
            total, peak, place = state
            logits, mask = static.dot(row, columns.T), pairs.off_diagonal()
            total += jnp.sum(jnp.where(mask, jax.nn.relu(logits + own[:, None]), 0.0), axis=1)
            logits = jnp.where(mask, logits, -jnp.inf)
            found, where = jnp.max(logits, axis=1), pairs.column[jnp.argmax(logits, axis=1)]
            return (total, jnp.maximum(peak, found), jnp.where(found > peak, where, place)), None

        zeros = jnp.zeros_like(offset)
        start = (zeros, jnp.full_like(zeros, -jnp.inf), jnp.full(zeros.shape, -1, jnp.int32))
        state, _ = ring.sweep(
            tile, (scale * a, offset), b, start, None, ring.nothing, static.layout
        )
        return state

    return ring.sharded(local, static.layout, static.mesh, (True,) * 3)(*arrays)


def _forward(
    static: blockwise.Static, a: jax.Array, b: jax.Array, scale: jax.Array, offset: jax.Array
) -> tuple[Any, Any]:
    total, peak, place = _sweep(static, a, b, scale, offset)
    return (total, peak), (a, b, scale, offset, place)


@functools.partial(jax.jit, static_argnums=(0,))
def _gradients(static: blockwise.Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    def local(
        a: jax.Array,
        b: jax.Array,
        scale: jax.Array,
        offset: jax.Array,
        place: jax.Array,
        of_total: jax.Array,
        of_peak: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            row, own, place, of_total, of_peak = rows
            to_row, to_offset = state
            logits, mask = static.dot(row, columns.T), pairs.off_diagonal()
            active = mask & (logits + own[:, None] > 0)
            grad = jnp.where(active, of_total[:, None], 0.0)
            to_offset += jnp.sum(grad, axis=1)
            # Its number, not its value: a product made anew may differ in its last digit.
            largest = mask & (pairs.column[None, :] == place[:, None])
            grad += jnp.where(largest, of_peak[:, None], 0.0)
            return (to_row + static.dot(grad, columns), to_offset), static.dot(grad.T, row)

        (to_a, to_offset), to_b = ring.sweep(
            tile,
            (scale * a, offset, place, of_total, of_peak),
            b,
            (jnp.zeros_like(a), jnp.zeros_like(offset)),
            jnp.zeros_like(b),
            jnp.add,
            static.layout,
        )
        return scale * to_a, to_b, jnp.vdot(a, to_a), to_offset

    outputs = (True, True, False, True)
    return ring.sharded(local, static.layout, static.mesh, outputs)(*arrays)


def _backward(static: blockwise.Static, residuals: Any, cotangents: Any) -> Any:
    return _gradients(static, *residuals, *cotangents)


_hinge.defvjp(_forward, _backward)
