"""Means of a contrast's logits under a teacher's softmax, without a matrix of either.

The cross-entropy of a row to soft targets p is lse_j x_ij - Σ_j p_ij x_ij. The first part is
:func:`jaxclip.losses.blockwise.logsumexp`. The second is a sweep over tiles of both products, in
which p_ij = exp(t_ij - lse_j t_ij) is made anew from the teacher's rows; in the backward pass, too.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.losses import ring
from jaxclip.losses.blockwise import Static


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def target_means(
    static: Static,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    teacher: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Σ_{j≠i} p_ij x_ij of each row and Σ_{i≠j} q_ij x_ij of each column, x = scale · I Tᵀ.

    Args:
      static: layout, mesh and precision.
      images: float[B, D].
      texts: float[B, D].
      scale: float[].
      teacher: its images, times its scale, and texts, [B, D'] both, and the log-sum-exp [B] of each
        row and of each column of their product, the diagonal included. It carries no gradient.

    Returns:
      float[B] twice.
    """
    return _forward(static, images, texts, scale, teacher)[0]


@functools.partial(jax.jit, static_argnums=(0,))
def _sweep(static: Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    def local(images: Any, texts: Any, scale: Any, *teacher: Any) -> tuple[jax.Array, ...]:
        their_images, their_texts, row, column = teacher

        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            logits = static.dot(rows[0], columns[0].T)
            p, q = _targets(static, rows[1:], columns[1:], pairs)
            return state + jnp.sum(p * logits, axis=1), jnp.sum(q * logits, axis=0)

        zeros = jnp.zeros_like(images[..., 0])
        rows, columns = (scale * images, their_images, row), (texts, their_texts, column)
        return ring.sweep(tile, rows, columns, zeros, zeros, jnp.add, static.layout)

    return ring.sharded(local, static.layout, static.mesh, (True, True))(*arrays)


def _forward(
    static: Static, images: jax.Array, texts: jax.Array, scale: jax.Array, teacher: Any
) -> tuple[Any, Any]:
    sums = _sweep(static, images, texts, scale, *teacher)
    return (sums[0], sums[1]), (images, texts, scale, teacher)


@functools.partial(jax.jit, static_argnums=(0,))
def _gradients(static: Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    def local(images: Any, texts: Any, scale: Any, *others: Any) -> tuple[jax.Array, ...]:
        their_images, their_texts, row, column, row_weight, column_weight = others

        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            (image, *theirs, weight), (text, *theirs_c, weight_c) = rows, columns
            p, q = _targets(static, theirs, theirs_c, pairs)
            grad = weight[:, None] * p + weight_c[None, :] * q
            return state + static.dot(grad, text), static.dot(grad.T, image)

        to_images, to_texts = ring.sweep(
            tile,
            (scale * images, their_images, row, row_weight),
            (texts, their_texts, column, column_weight),
            jnp.zeros_like(images),
            jnp.zeros_like(texts),
            jnp.add,
            static.layout,
        )
        return scale * to_images, to_texts, jnp.vdot(images, to_images)

    return ring.sharded(local, static.layout, static.mesh, (True, True, False))(*arrays)


def _backward(static: Static, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    *arrays, teacher = residuals
    gradients = _gradients(static, *arrays, *teacher, *cotangents)
    return (*gradients, jax.tree.map(jnp.zeros_like, teacher))


target_means.defvjp(_forward, _backward)


def _targets(
    static: Static, rows: Any, columns: Any, pairs: ring.Pairs
) -> tuple[jax.Array, jax.Array]:
    """The teacher's softmax over columns and over rows on a tile, 0 on the diagonal."""
    (image, row), (text, column) = rows, columns
    logits, mask = static.dot(image, text.T), pairs.off_diagonal()
    p, q = jnp.exp(logits - row[:, None]), jnp.exp(logits - column[None, :])
    return jnp.where(mask, p, 0.0), jnp.where(mask, q, 0.0)
