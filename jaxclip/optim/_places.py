"""Constants that kernels are told and do not hold, so that they stay equal to one another.

XLA compiles a kernel once for all tensors of one shape if the kernels are equal to the last
constant. To take a tensor's number out of a vector of all tensors' is equal for all if the place is
an argument. As a scalar it would become a constant of the kernel; an array never does, unless XLA
takes it apart before: until it has merged kernels a barrier hides what is in it.

That costs one constant a tensor. To unpack the vector first (``_unpack.py``) costs a kernel's call.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def constants(*numbers: int) -> np.ndarray:
    """Whole numbers, none of them negative, for :func:`settled`."""
    # Of numbers in equal steps XLA would make a scalar or a count, and merge that into kernels.
    return np.asarray([*numbers, -1, -1], np.int32)


def settled(array: np.ndarray | jax.Array) -> jax.Array:
    """The same numbers as an argument of the kernels that use them. Call it where they are used."""
    hidden: jax.Array = lax.optimization_barrier(jnp.asarray(array))
    return hidden


def at(vector: jax.Array, place: jax.Array) -> jax.Array:
    """One number of a vector.

    Args:
      vector: ``[n]``; kernels will take it, and not compute it, if it comes from a reduction.
      place: int32 scalar, an entry of what :func:`settled` gave; in range.
    """
    found = lax.dynamic_slice(vector, (place,), (1,), allow_negative_indices=False)
    return lax.squeeze(found, (0,))
