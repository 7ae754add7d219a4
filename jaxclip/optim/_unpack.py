"""From what is worked out for all tensors at once to the kernels of each.

**Compile time.** XLA compiles a kernel once for all tensors of one shape only if the kernels are
equal to the last constant. So a per-tensor kernel here gets its numbers as scalars (:func:`unpack`)
and not as ``vector[i]``, which would make ``i`` a constant of it: 300 tensors would be 300 kernels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip.optim import _places, _together

# So many numbers are looked up in a sum over all of them, more in two steps.
_AT_ONCE = 128

# Longest axis that XLA on CPUs reduces by one kernel; along longer ones it does pieces first.
LONGEST_AXIS = 32


def table_of(number: int, longest: int = LONGEST_AXIS) -> tuple[int, int]:
    """Rows and columns of a table for so many numbers, at most so many columns.

    Without empty places, which would take a kernel to fill in, if that does not make it too high.
    """
    columns = max(divisor for divisor in range(1, longest + 1) if number % divisor == 0)
    if number // columns > LONGEST_AXIS:
        columns = min(number, longest)
    return -(-number // columns), columns


def computed_once(values: jax.Array) -> jax.Array:
    """The same numbers, for kernels that shall take them and not compute them.

    XLA would merge the few operations that it takes into the kernels of all tensors, and compile
    them there anew. On CPUs it is a sum in which nothing else counts, which is never merged.

    Args:
      values: of any number type, or bool; a scalar or a small array.
    """
    if values.dtype == jnp.bool_:
        return computed_once(values.astype(jnp.int32)) > 0
    return lax.platform_dependent(values, cpu=_by_sum, default=lambda value: value)


def _by_sum(array: jax.Array) -> jax.Array:
    """The same numbers by a sum over two, one of which is zero; kernels do not do it themselves."""
    pair = _together.first_of_two(array, array.shape)
    return lax.reduce(pair, jnp.zeros((), array.dtype), lax.add, (0,))


def unpack(vector: jax.Array) -> list[jax.Array]:
    """The elements of a vector as scalars, for one kernel a tensor to use each.

    On CPUs a row of a table first, then an element of the row, each by a sum in which all others
    count as zero: XLA merges a plain ``vector[i]`` into the tensor's kernel, together with all that
    the vector is computed from, and compiles each such kernel anew (300 tensors: seven times the
    time).

    Args:
      vector: ``[num_tensors]``, of any number type, or bool.
    """
    if vector.dtype == jnp.bool_:
        return [number > 0 for number in unpack(vector.astype(jnp.int32))]
    return [column[0] for column in unpack_columns([vector])]


def unpack_columns(columns: Sequence[jax.Array]) -> list[jax.Array]:
    """Each tensor's numbers from vectors ``[num_tensors]``, as vectors ``[len(columns)]``.

    Args:
      columns: as for :func:`side_by_side`.
    """
    return unpack_table(side_by_side(columns))


def unpack_table(table: jax.Array) -> list[jax.Array]:
    """The columns of ``[k, num_tensors]``, each as an array of its own; see :func:`unpack`."""
    number = table.shape[1]
    if number < 2:
        return [table[:, i] for i in range(number)]
    return list(
        lax.platform_dependent(
            table, cpu=_by_sums, default=lambda given: [given[:, i] for i in range(number)]
        )
    )


def side_by_side(columns: Sequence[jax.Array]) -> jax.Array:
    """Vectors ``[n]`` as ``[len(columns), n]``.

    By one concatenation along the only axis, which XLA on CPUs copies. ``jnp.stack`` would be a
    kernel that asks at every element which vector it is from: six take 65 ms to compile.

    Args:
      columns: at least one of the dtype that the result shall have; the others must fit into it
        (bools become 0 and 1).
    """
    dtype = jnp.result_type(*columns)
    joined = [column.astype(dtype) for column in columns]
    return jnp.concatenate(joined).reshape(len(columns), columns[0].shape[0])


def _by_sums(table: jax.Array) -> list[jax.Array]:
    """The columns of ``[k, n]``, all from equal kernels."""
    rows, number = table.shape
    if number <= _AT_ONCE:
        return _one_by_one(table)
    height, width = table_of(number, longest=math.isqrt(number - 1) + 3)
    cube = _padded(table, width * height).reshape(rows, height, width)
    result: list[jax.Array] = []
    for line in np.eye(height, dtype=bool):
        # Arrays, not comparisons with an index: that would be a constant of the kernel.
        values = _sum_where(line[:, None], cube, (1,))
        for place in np.eye(width, dtype=bool)[: number - len(result)]:
            result.append(_sum_where(place, values, (1,)))
    return result


def _one_by_one(table: jax.Array) -> list[jax.Array]:
    """As :func:`_by_sums`, each column by one sum over all.

    Over two short axes, for along a long one a sum takes two kernels.
    """
    rows, number = table.shape
    height, width = table_of(number)
    # Else XLA would know that this is a matrix, and sum along its long axis.
    cube = lax.optimization_barrier(_padded(table, width * height).reshape(rows, height, width))
    places = np.eye(width * height, dtype=bool)[:number].reshape(number, height, width)
    return [_sum_where(place, cube, (1, 2)) for place in places]


def _padded(table: jax.Array, length: int) -> jax.Array:
    """``[k, n]`` with zeros behind, ``[k, length]``."""
    padding = [(0, 0, 0), (0, length - table.shape[1], 0)]
    return lax.pad(table, jnp.zeros((), table.dtype), padding)


def _sum_where(chosen: np.ndarray, table: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A sum over some axes in which only the chosen numbers count.

    Args:
      chosen: bool, of the shape of the table's last axes.
      table: of any number type.
      axes: along which to sum.
    """
    # Whole, for of a view JAX would make a constant and its broadcast.
    mask = np.ascontiguousarray(np.broadcast_to(chosen, table.shape))
    terms = lax.select(mask, table, lax.full_like(table, 0))
    return lax.reduce(terms, jnp.zeros((), table.dtype), lax.add, axes)


def unstack(arrays: Sequence[jax.Array], settled: bool = False) -> list[list[jax.Array]]:
    """The slices of arrays along their first axes.

    On CPUs those of one shape come from one kernel that is told where to begin: with its place a
    constant of it, each slice would be a kernel of its own.

    Args:
      arrays: [k, ...], of number types.
      settled: whether other kernels take the arrays as they are, and do not compute them.
    """
    if not arrays:
        return []
    by_places = functools.partial(_by_places, settled=settled)
    return lax.platform_dependent(arrays, cpu=by_places, default=_by_index)


def _by_index(arrays: Sequence[jax.Array]) -> list[list[jax.Array]]:
    """As :func:`unstack`, by places that are constants."""
    return [[array[i] for i in range(array.shape[0])] for array in arrays]


def _by_places(arrays: Sequence[jax.Array], settled: bool) -> list[list[jax.Array]]:
    """As :func:`unstack`, by places that kernels are told."""
    if not settled:
        arrays = _settled_by_shape(arrays)
    most = max(array.shape[0] for array in arrays)
    places = _places.places(range(most))
    return [[_slice(array, place) for place in places[: array.shape[0]]] for array in arrays]


def _settled_by_shape(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """As ``_together.settled``, for arrays of several shapes."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, array in enumerate(arrays):
        shapes.setdefault(array.shape, []).append(i)
    found: dict[int, jax.Array] = {}
    for group in shapes.values():
        found.update(zip(group, _together.settled([arrays[i] for i in group]), strict=True))
    return [found[i] for i in range(len(arrays))]


@jax.jit  # traced once a shape
def _slice(array: jax.Array, place: np.ndarray) -> jax.Array:
    """One slice along the first axis, at one of ``_places.places``."""
    starts = (_places.told(place), *[jnp.int32(0)] * (array.ndim - 1))
    part = lax.dynamic_slice(array, starts, (1, *array.shape[1:]), allow_negative_indices=False)
    return lax.squeeze(part, (0,))
