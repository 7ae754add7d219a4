"""Norms and largest values of tensors, and what goes between them and the tensors.

**Compile time.** XLA compiles a kernel once for all tensors of one shape only if the kernels are
equal to the last constant. So a per-tensor kernel here gets its numbers as scalars (:func:`unpack`)
and not as ``vector[i]``, which would make ``i`` a constant of it: 300 tensors would be 300 kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Squares of float32 fit float32 for magnitudes between about 2^-63 and 2^63. Norms that are out of
# that range are computed again with tensors times one of these.
_DOWN, _UP = 2.0**-80, 2.0**80
_SMALL = 2.0**-40  # below this, squares may have lost digits


def tensor_norms(
    leaves: Sequence[jax.Array],
    dtype: Any,
    minus: Sequence[jax.Array] | None = None,
    *,
    exact_small: bool = False,
) -> jax.Array:
    """L2 norm of each tensor, one reduction a tensor, as ``[num_tensors]``.

    If the squares overflow float32, all is computed once more, scaled, so that a finite gradient
    has its finite norm.

    Args:
      leaves: tensors.
      dtype: of the result.
      minus: tensors to be subtracted first, ``None`` for none. (Given differences instead, the
        second look at norms that overflowed would have them all written to memory.)
      exact_small: whether norms below 1e-12, too, are computed once more. Without it tensors with
        elements below 1e-19 have norm zero. It costs a second read wherever a tensor is all zero.
    """
    if not leaves:
        return jnp.zeros((0,), dtype)
    if jnp.dtype(dtype) == jnp.float64:
        return _norms_at(jnp.ones((), dtype), leaves, dtype, minus)

    # A loop, and not the norms and then a branch: then everything would be compiled twice.
    def again(carry: tuple[jax.Array, ...]) -> jax.Array:
        return carry[0] < 3

    def look(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        attempt, old = carry
        scale = jnp.where(attempt == 0, 1.0, jnp.where(attempt == 1, _DOWN, _UP)).astype(dtype)
        new = _norms_at(scale, leaves, dtype, minus)
        improve = jnp.where(attempt == 2, old < _SMALL, ~jnp.isfinite(old))
        norms = jnp.where(improve, new, old)
        upwards = exact_small & (attempt < 2) & jnp.any(norms < _SMALL)
        following = jnp.where(upwards, 2, 3)
        overflowed = (attempt == 0) & ~jnp.all(jnp.isfinite(norms))
        return jnp.where(overflowed, 1, following).astype(jnp.int32), norms

    start = (jnp.zeros((), jnp.int32), jnp.full((len(leaves),), jnp.inf, dtype))
    return lax.while_loop(again, look, varying_like(start, [*leaves, *(minus or ())]))[1]


def _norms_at(
    scale: jax.Array, leaves: Sequence[jax.Array], dtype: Any, minus: Sequence[jax.Array] | None
) -> jax.Array:
    """Norms of tensors, from the squares of the tensors times a scale (a power of two)."""
    if minus is None:
        tensors = [_scaled(leaf, scale, dtype) for leaf in leaves]
    else:
        tensors = [
            _scaled(a, scale, b.dtype) - _scaled(b, scale, b.dtype)
            for a, b in zip(leaves, minus, strict=True)
        ]
    return jnp.sqrt(jnp.stack([_square_sum(tensor, dtype) for tensor in tensors])) / scale


def _scaled(leaf: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
    """A tensor times the scale, in ``dtype`` (complex stays complex)."""
    # Tied to the scale, which the loop changes, lest XLA casts all gradients before the loop; and
    # to a scale of the tensor's own, lest it writes one out as large as the tensor for all to read.
    leaf, scale = lax.optimization_barrier((leaf, scale))
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf * scale.astype(leaf.real.dtype)
    return leaf.astype(dtype) * scale.astype(dtype)


def _square_sum(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Sum of the squared absolute values, computed in ``dtype``."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _square_sum(leaf.real, dtype) + _square_sum(leaf.imag, dtype)
    return jnp.sum(lax.square(leaf.astype(dtype)))


def combine_norms(norms: jax.Array) -> jax.Array:
    """L2 norm of a vector of norms; neither over- nor underflows before its result does."""
    largest = jnp.max(norms, initial=0.0)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe)))


def global_norm(
    leaves: Sequence[jax.Array], dtype: Any, minus: Sequence[jax.Array] | None = None
) -> jax.Array:
    """L2 norm of all tensors together, a scalar; arguments as for :func:`tensor_norms`."""
    return combine_norms(tensor_norms(leaves, dtype, minus))


def tensor_maxima(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Largest absolute value of each tensor (0 for one without elements), as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    found = [_maximum(lax.abs(leaf), lax.ne(leaf, leaf)) for leaf in leaves]
    largest = jnp.stack([value.astype(dtype) for value, _ in found])
    return jnp.where(jnp.stack([spoilt for _, spoilt in found]), jnp.nan, largest)


def max_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Largest of a tensor's non-negative values (0 without any), NaN if any is spoilt.

    ``jnp.max`` would not do: XLA's reductions on the CPU may lose NaN.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape or a scalar.
    """
    spoilt = jnp.broadcast_to(spoilt, values.shape)
    largest, any_spoilt = _maximum(values, spoilt)
    return jnp.where(any_spoilt, jnp.nan, largest)


def _maximum(values: jax.Array, spoilt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest of non-negative values, and whether any is spoilt, from one read."""
    largest, any_spoilt = lax.reduce(
        (values, spoilt),
        (jnp.zeros((), values.dtype), jnp.zeros((), jnp.bool_)),
        lambda x, y: (lax.max(x[0], y[0]), x[1] | y[1]),
        tuple(range(values.ndim)),
    )
    return largest, any_spoilt


def sum_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Sum of a tensor's values, NaN if any is spoilt.

    Not by a reduction with two results, as the maximum: that adds one value after the other, which
    costs float32 its digits beyond some ten thousand, and to do rows first would have devices that
    share rows exchange a number for each.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape.
    """
    return jnp.sum(jnp.where(spoilt, jnp.nan, values))


def ordered_pattern(magnitude: jax.Array) -> jax.Array:
    """Bit patterns of non-negative floats: integers in the same order, NaN above infinity.

    An integer maximum of them keeps NaN, as a float maximum does, but vectorises.
    """
    integer = jnp.dtype(f"int{8 * magnitude.dtype.itemsize}")
    return lax.bitcast_convert_type(magnitude, integer)


def unpack(vector: jax.Array) -> list[jax.Array]:
    """The elements of a vector as scalars, for one kernel a tensor to use each.

    On CPUs a row of a table first, then an element of the row, each by a sum in which all others
    count as zero: XLA merges a plain ``vector[i]`` into the tensor's kernel, together with all that
    the vector is computed from, and compiles each such kernel anew (300 tensors: seven times the
    time).

    Args:
      vector: [num_tensors] or [num_tensors, k], of any number type.

    Returns:
      Scalars, or vectors [k].
    """
    number = vector.shape[0]
    if number < 2:
        return [vector[i] for i in range(number)]
    return list(
        lax.platform_dependent(
            vector, cpu=_by_sums, default=lambda v: [v[i] for i in range(number)]
        )
    )


def unpack_columns(columns: Sequence[jax.Array]) -> list[jax.Array]:
    """Each tensor's numbers from vectors ``[num_tensors]``, as vectors ``[len(columns)]``.

    Args:
      columns: at least one of the dtype that the result shall have; the others must fit into it
        (bools become 0 and 1).
    """
    dtype = jnp.result_type(*columns)
    return unpack(jnp.stack([column.astype(dtype) for column in columns], axis=1))


def _by_sums(vector: jax.Array) -> list[jax.Array]:
    """As :func:`unpack`, where all elements come from equal kernels."""
    number = vector.shape[0]
    width = math.isqrt(number - 1) + 1
    height = -(-number // width)
    zero = jnp.zeros((), vector.dtype)
    rest = vector.shape[1:]
    padding = [(0, width * height - number, 0), *[(0, 0, 0)] * len(rest)]
    table = lax.pad(vector, zero, padding).reshape(height, width, *rest)
    # Arrays, not comparisons with an index: that would be a constant of the kernel.
    rows, columns = np.eye(height, dtype=bool), np.eye(width, dtype=bool)
    result: list[jax.Array] = []
    for row in rows:
        chosen = np.broadcast_to(row.reshape(-1, *[1] * (table.ndim - 1)), table.shape)
        values = lax.reduce(lax.select(chosen, table, lax.full_like(table, 0)), zero, lax.add, (0,))
        blank = lax.full_like(values, 0)
        for column in columns[: number - len(result)]:
            chosen = np.broadcast_to(column.reshape(-1, *[1] * len(rest)), values.shape)
            result.append(lax.reduce(lax.select(chosen, values, blank), zero, lax.add, (0,)))
    return result


def varying_like(values: Any, leaves: Sequence[jax.Array]) -> Any:
    """Values for the start of a loop over what varies, in ``jax.shard_map``, as the leaves do."""
    axes = sorted({axis for leaf in leaves for axis in _varying_axes(jax.typeof(leaf))})
    if not axes:
        return values
    return jax.tree.map(lambda value: lax.pcast(value, tuple(axes), to="varying"), values)


def _varying_axes(aval: Any) -> Iterable[str]:
    """Mesh axes that a value differs along; its name in JAX has changed between versions."""
    axes: Iterable[str] = getattr(aval, "vma", ())
    return getattr(getattr(aval, "manual_axis_type", None), "varying", axes)
