"""Handing a vector's numbers to the work on each tensor, one by one, without slow compiles.

XLA's CPU compiler makes one machine function of equal kernels, as those of a model's equal layers
are. It also moves the choice of a number, ``vector[i]``, into the kernel that needs it. Then no two
kernels are equal, and three hundred tensors take fifteen times as long to compile. So the kernels
get the whole table, and the place of their tensor in it as data.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def rows(columns: Sequence[jax.Array], count: jax.Array) -> list[jax.Array]:
    """Each tensor's numbers.

    Args:
      columns: vectors ``[num_tensors]``, at least one of them of the dtype that the result shall
        have; the others must fit into it (bools become 0 and 1).
      count: any integer that is not negative and that the compiler doesn't know.

    Returns:
      ``num_tensors`` arrays ``[len(columns)]``.
    """
    dtype = jnp.result_type(*columns)
    table = jnp.stack([column.astype(dtype) for column in columns], axis=1)
    return [_row(table, place, count) for place in _places(table.shape[0])]


def _places(number: int) -> list[np.ndarray]:
    """Each tensor's place, and another number: a constant of one would be written into kernels."""
    return [np.asarray([i, number], np.uint32) for i in range(number)]


@jax.jit
def _row(table: jax.Array, place: jax.Array, count: jax.Array) -> jax.Array:
    # The compiler doesn't know that this adds nothing, and so can't work the place out.
    place = place + jnp.minimum(count, 0).astype(place.dtype)
    return jax.lax.dynamic_index_in_dim(table, place[0], keepdims=False)
