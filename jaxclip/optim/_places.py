"""Places of tensors that kernels are told and do not hold, so that they stay equal to one another.

XLA compiles a kernel once for all tensors of one shape if the kernels are equal to the last
constant. To take a tensor's number out of a vector of all tensors' is equal for all if the place is
an argument. As a scalar it would become a constant of the kernel; an array never does, unless XLA
takes it apart before: until it has merged kernels a barrier hides what is in it.

That costs one constant a tensor. To unpack the vector first (``_unpack.py``) costs a kernel's call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def places(*columns: Iterable[int]) -> list[np.ndarray]:
    """One small int32 array a tensor, of a number of each column, for :func:`told`.

    Args:
      columns: whole numbers, none of them negative; as many in each as there are tensors.
    """
    # Of numbers in equal steps XLA would make a scalar or a count, and merge that into kernels.
    return [np.asarray([*row, -1, -1], np.int32) for row in zip(*columns, strict=True)]


def told(place: np.ndarray | jax.Array, column: int = 0) -> jax.Array:
    """One number of a tensor's, int32 scalar, for kernels to take as an argument.

    Best called in a function that is traced once a shape.

    Args:
      place: one of :func:`places`.
      column: which number.
    """
    # One barrier each: XLA takes apart many times what is tied together by one.
    hidden = lax.platform_dependent(
        jnp.asarray(place), cpu=lax.optimization_barrier, default=lambda array: array
    )
    return lax.index_in_dim(hidden, column, keepdims=False)


@functools.partial(jax.jit, static_argnames="column")
def at(array: jax.Array, place: np.ndarray | jax.Array, column: int = 0) -> jax.Array:
    """What an array has at a place of its last axis.

    Args:
      array: ``[..., n]``; kernels will take it, and not compute it, if it comes from a reduction.
      place: one of :func:`places`.
      column: which of its numbers is the place.
    """
    starts = (*[jnp.int32(0)] * (array.ndim - 1), told(place, column))
    sizes = (*array.shape[:-1], 1)
    found = lax.dynamic_slice(array, starts, sizes, allow_negative_indices=False)
    return lax.squeeze(found, (array.ndim - 1,))
