"""Norms and largest values of tensors, in the fewest kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxclip.optim._stacks import LARGEST, Stacks

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
    together: bool = True,
) -> jax.Array:
    """L2 norm of each tensor, as ``[num_tensors]``.

    If the squares overflow float32, all is computed once more, scaled, so that a finite gradient
    has its finite norm.

    Args:
      leaves: tensors.
      dtype: of the result.
      minus: tensors to be subtracted first, ``None`` for none. (Given differences instead, the
        second look at norms that overflowed would have them all written to memory.)
      exact_small: whether norms below 1e-12, too, are computed once more. Without it tensors with
        elements below 1e-19 have norm zero. It costs a second read wherever a tensor is all zero.
      together: whether small tensors are summed in the fewest kernels, those of one shape in one.
        That is less to compile; but their sums add up in another order, to other last digits.
    """
    if not leaves:
        return jnp.zeros((0,), dtype)
    stacks = Stacks(leaves, least=2 if together else len(leaves) + 1)
    arrays = [stacks.arrays(tensors) for tensors in (leaves, minus) if tensors is not None]
    if jnp.dtype(dtype) == jnp.float64:
        return _norms_at(jnp.ones((), dtype), stacks, arrays, dtype, together)

    # A loop, and not the norms and then a branch: then everything would be compiled twice.
    def again(carry: tuple[jax.Array, ...]) -> jax.Array:
        return carry[0] < 3

    def look(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        attempt, old = carry
        scale = jnp.where(attempt == 0, 1.0, jnp.where(attempt == 1, _DOWN, _UP)).astype(dtype)
        new = _norms_at(scale, stacks, arrays, dtype, together)
        improve = jnp.where(attempt == 2, old < _SMALL, ~jnp.isfinite(old))
        norms = jnp.where(improve, new, old)
        upwards = exact_small & (attempt < 2) & jnp.any(norms < _SMALL)
        following = jnp.where(upwards, 2, 3)
        overflowed = (attempt == 0) & ~jnp.all(jnp.isfinite(norms))
        return jnp.where(overflowed, 1, following).astype(jnp.int32), norms

    start = (jnp.zeros((), jnp.int32), jnp.full((len(leaves),), jnp.inf, dtype))
    return lax.while_loop(again, look, varying_like(start, [*leaves, *(minus or ())]))[1]


def _norms_at(
    scale: jax.Array, stacks: Stacks, arrays: Sequence[list[jax.Array]], dtype: Any, short: bool
) -> jax.Array:
    """Norms of tensors (or differences), from the squares of tensors times a power of two."""
    own = [_scaled(array, scale, dtype) for array in arrays[0]]
    if len(arrays) > 1:
        # In the precision of what is subtracted.
        pairs = zip(*arrays, strict=True)
        own = [_scaled(a, scale, b.dtype) - _scaled(b, scale, b.dtype) for a, b in pairs]
    cut = short_axes if short else lambda tensor: tensor
    sums = stacks.each(lambda tensor: _square_sum(cut(tensor), dtype), own)
    return jnp.sqrt(stacks.vector(sums)) / scale


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


def short_axes(leaf: jax.Array) -> jax.Array:
    """A small tensor with its axes cut into ones of at most 32, as a reduction shall see it.

    Along longer axes XLA on CPUs reduces pieces of 32 first, in three kernels: the terms, the
    pieces, and the whole. Short axes take one kernel. (Sums add up in another order.) Each axis is
    cut by itself, so that a device that holds a piece of it need not ask the others.
    """
    if leaf.size > LARGEST:
        return leaf
    shape = [piece for length in leaf.shape for piece in _pieces(length)]
    # Else XLA would know that all axes are reduced, and take the reshaping back.
    return lax.optimization_barrier(leaf.reshape(shape)) if len(shape) > leaf.ndim else leaf


def _pieces(length: int) -> list[int]:
    """Factors of a length, all but the first 32; the length itself if that is not divisible."""
    pieces: list[int] = []
    while length > 32 and length % 32 == 0:
        length, pieces = length // 32, [32, *pieces]
    return [length, *pieces]


def combine_norms(norms: jax.Array) -> jax.Array:
    """L2 norm of a vector of norms; neither over- nor underflows before its result does."""
    largest = jnp.max(norms, initial=0.0)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe)))


def global_norm(
    leaves: Sequence[jax.Array],
    dtype: Any,
    minus: Sequence[jax.Array] | None = None,
    *,
    together: bool = True,
) -> jax.Array:
    """L2 norm of all tensors together, a scalar; arguments as for :func:`tensor_norms`."""
    return combine_norms(tensor_norms(leaves, dtype, minus, together=together))


def tensor_maxima(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Largest absolute value of each tensor (0 for one without elements), as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    stacks = Stacks(leaves)

    def of_one(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest, spoilt = _maximum(lax.abs(leaf), lax.ne(leaf, leaf))
        return largest.astype(dtype), spoilt

    largest, spoilt = map(
        stacks.vector, zip(*stacks.each(of_one, stacks.arrays(leaves)), strict=True)
    )
    return jnp.where(spoilt, jnp.nan, largest)


def max_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Largest of a tensor's non-negative values (0 without any), NaN if any is spoilt.

    ``jnp.max`` would not do: XLA's reductions on the CPU may lose NaN.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape or a scalar.
    """
    spoilt = jnp.broadcast_to(spoilt, values.shape)
    if values.size <= LARGEST:
        # Of a large tensor all patterns would be written out first.
        pattern = ordered_pattern(values)
        pattern = jnp.where(spoilt, jnp.iinfo(pattern.dtype).max, pattern)
        largest = jnp.max(short_axes(pattern), initial=0)
        return lax.bitcast_convert_type(largest, values.dtype)
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
