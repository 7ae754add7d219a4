"""Inverse square roots of ``I + M`` for stacks of symmetric matrices, by matrix products alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip.optim._norms import short_axes
from jaxclip.optim._where import where

# Weights of a sum of ones and of a matrix: of each of the two what it is, and how much of the share
# it rises by. For the matrix whose root is sought, from M; for the factor of the first step, from
# M, too; and for that of any other step, from a product.
_MATRIX = np.asarray([0.0, 1.0, 0.0, 1.0])
_FIRST = np.asarray([1.5, -0.5, 0.0, -0.5])
_STEP = np.asarray([1.5, 0.0, -0.5, 0.0])


@functools.partial(jax.jit, static_argnames="steps")  # traced once a shape
def inverse_roots(
    matrices: jax.Array, unbounded: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inverse roots by coupled Newton-Schulz steps; see ``spectra_clip`` for the iteration.

    Args:
      matrices: M, ``[k, m, m]``, symmetric, without negative eigenvalues.
      unbounded: bool scalar; where it holds the roots are ones.
      steps: of Newton-Schulz.

    Returns:
      Matrices ``[k, m, m]`` and their factors ``[k]``, which together are the roots; and bounds on
      the eigenvalues of M, ``[k]``.
    """
    rows = short_axes(jnp.sum(jnp.abs(matrices), axis=-1), kept=1)
    squares = jnp.sum(jnp.square(matrices), axis=(-2, -1))
    share, scale, largest = _numbers(rows, squares, unbounded)
    shares = share, where(unbounded, 0.0, share)

    def summed(weights: np.ndarray, of: jax.Array) -> jax.Array:
        return _summed(jnp.asarray(weights, of.dtype), shares, of)

    def step(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = pair
        factor = summed(_STEP, product(inverse, root))
        return product(root, factor), product(factor, inverse)

    # The first step, from Z = I.
    first = summed(_FIRST, matrices)
    pair = product(summed(_MATRIX, matrices), first), first
    return lax.fori_loop(1, steps, step, pair)[1], scale, largest


def _numbers(
    rows: jax.Array, squares: jax.Array, unbounded: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each matrix: share of ones in ``I + M`` over a bound, the root's factor, M's bound.

    All three rise or fall with M's bound, which is the largest sum of a row (Gershgorin's) or the
    Frobenius norm, whichever is smaller. So they are worked out for each row, and the largest or
    smallest is taken: all from one kernel.

    Args:
      rows: sums of each row's absolute values, ``[k, ...]``.
      squares: sums of squares, ``[k]``.
      unbounded: bool scalar.
    """
    # The root of the smaller square: of two roots one would be a kernel of its own. Squares of rows
    # may overflow; then the other is smaller.
    both = jnp.minimum(jnp.square(rows), lax.broadcast_in_dim(squares, rows.shape, (0,)))
    largest = jnp.sqrt(both)
    share = where(unbounded, 1.0, 1 / (1 + largest))
    infinity = jnp.asarray(jnp.inf, rows.dtype)
    found: tuple[jax.Array, jax.Array, jax.Array] = lax.reduce(
        (share, jnp.sqrt(share), largest),
        (infinity, infinity, -infinity),
        lambda x, y: (lax.min(x[0], y[0]), lax.min(x[1], y[1]), lax.max(x[2], y[2])),
        tuple(range(1, rows.ndim)),
    )
    return found


@jax.jit  # traced once a shape
def _summed(
    weights: jax.Array, shares: tuple[jax.Array, jax.Array], matrices: jax.Array
) -> jax.Array:
    """A weighted sum of ones and of matrices, by one kernel for all weights.

    Args:
      weights: ``[4]``, see above.
      shares: of ones, and of the matrices, each ``[k]``.
      matrices: ``[k, m, m]``.
    """
    places = lax.iota(jnp.int32, matrices.shape[-1])
    # Tied to what a loop changes, lest XLA makes an array of ones before it; and to be the same
    # kernel everywhere.
    weights, shares, matrices, places = lax.optimization_barrier(
        (weights, shares, matrices, places)
    )
    one, rise, other, other_rise = (lax.index_in_dim(weights, i, keepdims=False) for i in range(4))
    shape = matrices.shape
    ones = lax.broadcast_in_dim(one + rise * shares[0], shape, (0,))
    others = lax.broadcast_in_dim(other + other_rise * shares[1], shape, (0,))
    rows, columns = (lax.broadcast_in_dim(places, shape, (axis,)) for axis in (1, 2))
    return where(rows == columns, ones, 0.0) + others * matrices


def product(left: jax.Array, right: jax.Array, axes: tuple[int, int] = (-1, -2)) -> jax.Array:
    """Products of two stacks of matrices, in full float32, which accelerators would else cut.

    Args:
      left: ``[..., m, n]``.
      right: as many matrices.
      axes: of ``left`` and of ``right``, along which to sum.
    """
    stack = tuple(range(left.ndim - 2))
    along = (left.ndim + axes[0],), (right.ndim + axes[1],)
    return lax.dot_general(left, right, (along, (stack, stack)), precision=lax.Precision.HIGHEST)
