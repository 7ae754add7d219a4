"""Norms and largest values of tensors, in the fewest kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip.optim._stacks import LARGEST, LEAST, Stacks
from jaxclip.optim._where import where

# Squares of float32 fit float32 for magnitudes between about 2^-63 and 2^63. Norms that are out of
# that range are computed again with tensors times one of these.
_DOWN, _UP = 2.0**-80, 2.0**80
_SMALL = 2.0**-40  # below this, squares may have lost digits

# From so many tensors of a type on their largest values are found together.
_MANY = 64


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
    stacks = Stacks(leaves, least=LEAST if together else len(leaves) + 1)
    return _look_until_in_range(leaves, minus, stacks, dtype, exact_small, together).norms


def norms_and_total(leaves: Sequence[jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """L2 norm of each tensor, as ``[num_tensors]``, and of all together, as a scalar."""
    if not leaves:
        return jnp.zeros((0,), dtype), jnp.zeros((), dtype)
    found = _look_until_in_range(leaves, None, Stacks(leaves), dtype)
    return found.norms, found.total


def global_norm(
    leaves: Sequence[jax.Array],
    dtype: Any,
    minus: Sequence[jax.Array] | None = None,
    *,
    together: bool = True,
) -> jax.Array:
    """L2 norm of all tensors together, a scalar; arguments as for :func:`tensor_norms`."""
    if not leaves:
        return jnp.zeros((), dtype)
    if not together:
        return combine_norms(tensor_norms(leaves, dtype, minus, together=False))
    return _look_until_in_range(leaves, minus, Stacks(leaves), dtype, of_each=False).total


class _Found(NamedTuple):
    """Norms as far as they are known, and the scale of the next look.

    Attributes:
      scale: power of two that tensors are multiplied by; zero: there is no next look.
      total: norm of all tensors; infinite before the first look.
      norms: of each tensor, ``[num_tensors]``; empty if nobody wants them.
    """

    scale: jax.Array
    total: jax.Array
    norms: jax.Array


def _look_until_in_range(
    leaves: Sequence[jax.Array],
    minus: Sequence[jax.Array] | None,
    stacks: Stacks,
    dtype: Any,
    exact_small: bool = False,
    short: bool = True,
    *,
    of_each: bool = True,
) -> _Found:
    """Norms, from tensors as they are and once more, scaled, if that went out of range.

    A loop, and not the norms and then a branch: then everything would be compiled twice. It has few
    numbers, and asks for the total alone whether to go on: each is a kernel more to compile.

    Args:
      leaves: at least one tensor.
      minus: subtracted first, or ``None``.
      stacks: how they are put together.
      dtype: of the result.
      exact_small: as for :func:`tensor_norms`; the total is not exact then.
      short: whether sums may add up in another order than axis by axis.
      of_each: whether the norm of each tensor is wanted.
    """
    # JAX differentiates no loop of unknown length backwards.
    arrays = [
        stacks.arrays(lax.stop_gradient(tensors))
        for tensors in (leaves, minus)
        if tensors is not None
    ]

    def look(found: _Found) -> _Found:
        sums = stacks.joined(_square_sums(found.scale, stacks, arrays, dtype, short))
        total = jnp.sqrt(jnp.sum(sums)) / found.scale
        total = jnp.where(jnp.isfinite(found.total), found.total, total)
        following = jnp.where(found.scale == 1, _DOWN, 0.0)
        norms = found.norms
        if of_each:
            new = jnp.sqrt(stacks.in_order(sums)) / found.scale
            improve = ~jnp.isfinite(norms)
            if exact_small:
                improve = jnp.where(found.scale == _UP, norms < _SMALL, improve)
            norms = jnp.where(improve, new, norms)
        if exact_small:
            upwards = (found.scale != _UP) & jnp.any(norms < _SMALL)
            overflowed = (found.scale == 1) & ~jnp.isfinite(total)
            following = jnp.where(overflowed, _DOWN, jnp.where(upwards, _UP, 0.0))
        return _Found(following.astype(dtype), total, norms)

    def again(found: _Found) -> jax.Array:
        return (found.scale > 0) & (exact_small | ~jnp.isfinite(found.total))

    number = len(leaves) if of_each else 0
    # Of equal numbers XLA would make a kernel.
    unknown = jnp.asarray(np.where(np.arange(number) == 0, np.nan, np.inf), dtype)
    start = _Found(jnp.ones((), dtype), jnp.full((), jnp.inf, dtype), unknown)
    if jnp.dtype(dtype) == jnp.float64:
        return look(start)
    return lax.while_loop(again, look, varying_like(start, [*leaves, *(minus or ())]))


def _square_sums(
    scale: jax.Array, stacks: Stacks, arrays: Sequence[list[jax.Array]], dtype: Any, short: bool
) -> list[jax.Array]:
    """Sums of the squares of tensors (or differences) times a power of two, for each array."""
    own = [_scaled(array, scale, dtype=dtype) for array in arrays[0]]
    if len(arrays) > 1:
        # In the precision of what is subtracted.
        pairs = zip(*arrays, strict=True)
        own = [
            _scaled(a, scale, dtype=b.dtype) - _scaled(b, scale, dtype=b.dtype) for a, b in pairs
        ]
    cut = short_axes if short else lambda tensor: tensor
    return stacks.each(lambda tensor: _square_sum(cut(tensor), dtype), own)


@functools.partial(jax.jit, static_argnames="dtype")  # traced once a shape
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


def short_axes(leaf: jax.Array, kept: int = 0) -> jax.Array:
    """A small tensor with its axes cut into ones of at most 32, as a reduction shall see it.

    Along longer axes XLA on CPUs reduces pieces of 32 first, in three kernels: the terms, the
    pieces, and the whole. Short axes take one kernel. (Sums add up in another order.) Each axis is
    cut by itself, so that a device that holds a piece of it need not ask the others.

    Args:
      leaf: tensor.
      kept: so many axes in front, along which nothing is reduced, stay as they are.
    """
    if leaf.size > LARGEST:
        return leaf
    pieces = (piece for length in leaf.shape[kept:] for piece in _pieces(length))
    shape = [*leaf.shape[:kept], *pieces]
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


def tensor_maxima(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Largest absolute value of each tensor (0 for one without elements), as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    # Few small tensors one by one: that is one kernel a shape, too, and puts nothing together.
    stacks = Stacks(leaves, least=_MANY)

    def of_one(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest, spoilt = _max_and_flag(lax.abs(leaf), lax.ne(leaf, leaf))
        return largest.astype(dtype), spoilt.astype(dtype)

    columns = zip(*stacks.each(of_one, stacks.arrays(leaves)), strict=True)
    largest, spoilt = stacks.matrix(list(columns))
    return jnp.where(spoilt > 0, jnp.nan, largest)


def maxima_and_finite(leaves: Sequence[jax.Array], dtype: Any) -> tuple[jax.Array, list[jax.Array]]:
    """As :func:`tensor_maxima`, and for each tensor a bool: whether all its elements are finite.

    A bool comes from the tensor's own reduction, where that is alone: it need not be looked up. Who
    needs no bools takes :func:`tensor_maxima`: without them, XLA would leave a reduction with one
    result, which is three kernels.
    """
    if not leaves:
        return jnp.zeros((0,), dtype), []
    stacks = Stacks(leaves, least=_MANY)
    looks = stacks.each(functools.partial(_largest, dtype=dtype), stacks.arrays(leaves))
    patterns, finite = zip(*looks, strict=True)
    return lax.bitcast_convert_type(stacks.vector(patterns), dtype), stacks.scalars(finite)


@functools.partial(jax.jit, static_argnames="dtype")  # traced once a shape
def _largest(leaf: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Bit pattern of a tensor's largest absolute value; whether all its elements are finite.

    Non-negative floats are ordered as their patterns, infinity above all of them and NaN above
    that: the largest integer tells all. (``jnp.max`` may lose NaN on CPUs.)
    """
    integer = jnp.dtype(f"int{8 * jnp.dtype(dtype).itemsize}")
    highest = jnp.iinfo(integer).max
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        # The magnitude of NaN beside infinity would be infinite.
        leaf = jnp.where(leaf == leaf, lax.abs(leaf), jnp.nan)
    pattern = lax.bitcast_convert_type(leaf.astype(dtype), integer)
    pattern = lax.bitwise_and(pattern, lax.full_like(pattern, highest))  # without the sign
    infinity = np.asarray(np.inf, dtype).view(integer)
    return lax.reduce(
        (pattern, pattern < infinity),
        (jnp.zeros((), integer), jnp.asarray(True)),
        lambda x, y: (lax.max(x[0], y[0]), x[1] & y[1]),
        tuple(range(leaf.ndim)),
    )


def max_and_flag(values: jax.Array, spoilt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest of a tensor's non-negative values (0 without any), and one if any is spoilt, else 0.

    From one read, by one kernel. ``jnp.max`` would not do: XLA's may lose NaN on CPUs.

    Args:
      values: tensor of any shape; what is spoilt may be NaN.
      spoilt: bool, of the same shape or a scalar.

    Returns:
      Two scalars of the values' dtype. The first means nothing where any is spoilt.
    """
    # JAX differentiates no reduction with two results.
    values, spoilt = lax.stop_gradient(values), jnp.broadcast_to(spoilt, values.shape)
    zero = jnp.zeros((), values.dtype)
    largest, flag = lax.reduce(
        (values, spoilt.astype(values.dtype)),
        (zero, zero),
        lambda x, y: (lax.max(x[0], y[0]), lax.max(x[1], y[1])),
        tuple(range(values.ndim)),
    )
    return largest, flag


def max_and_all(values: jax.Array, holds: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As :func:`max_and_flag`, but the second is one if something holds for all, else 0."""
    values = lax.stop_gradient(values)  # as there
    largest, all_hold = lax.reduce(
        (values, holds.astype(values.dtype)),
        (jnp.zeros((), values.dtype), jnp.ones((), values.dtype)),
        lambda x, y: (lax.max(x[0], y[0]), lax.min(x[1], y[1])),
        tuple(range(values.ndim)),
    )
    return largest, all_hold


_max_and_flag = jax.jit(max_and_flag)  # traced once a shape


def zero_or_nan(leaf: jax.Array) -> jax.Array:
    """A scalar that is NaN if any element of a tensor is NaN or infinite, else zero."""
    return jnp.sum(0 * leaf)


def sum_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Sum of a tensor's values, NaN if any is spoilt.

    Not by a reduction with two results, as :func:`max_and_flag`: that adds one value after the
    other, which costs float32 its digits beyond some ten thousand, and to do rows first would have
    devices that share rows exchange a number for each.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape.
    """
    return jnp.sum(where(spoilt, jnp.nan, values))


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
