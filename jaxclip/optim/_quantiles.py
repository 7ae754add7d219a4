"""Exact order statistics without sorting: each pass only counts, so sharded tensors stay put.

Non-negative floats are ordered as their bit patterns. The k-th smallest is found two bits at a time
from the highest bits down: a pass over the data counts how many values lie below each of three
candidates. float32 takes 16 passes, bfloat16 eight, and one more finds the next larger value and
the largest. A sort would be far slower and would gather a sharded tensor on every device; more
candidates a pass are slower, too, for the processor is then busier than the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip.optim import _norms, _places, _unpack
from jaxclip.optim._stacks import Stacks

_DIGIT_BITS = 2
_CANDIDATES = 2**_DIGIT_BITS - 1
# Lowest bits of a float32 pattern that are zero in all values of a dtype (subnormals included).
_ZERO_BITS = {"bfloat16": 16, "float16": 12}


class Quantiles(NamedTuple):
    """Quantiles and maxima, both ``[num_tensors]``."""

    quantile: jax.Array
    maximum: jax.Array


def absolute_quantiles(
    leaves: Sequence[jax.Array], ranks: jax.Array, weights: jax.Array, dtype: Any
) -> Quantiles:
    """Linearly interpolated order statistics of the absolute values of each tensor.

    Args:
      leaves: real floating tensors of any shape with at least one element.
      ranks: int32[num_tensors], which smallest value, from 0.
      weights: [num_tensors] in [0, 1), how far towards the value of the next rank.
      dtype: of the result.

    Returns:
      For each tensor the interpolated value and the largest one, which is NaN if any value is. The
      quantile means nothing for a tensor with a NaN.
    """
    quantile = jnp.zeros((len(leaves),), dtype)
    maximum = jnp.zeros((len(leaves),), dtype)
    # One loop for all tensors of a dtype, not one a tensor.
    groups: dict[Any, list[int]] = {}
    for index, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype, []).append(index)
    for indices in groups.values():
        if len(groups) == 1:
            found = _of_one_dtype(leaves, ranks, weights)
            return Quantiles(found.quantile.astype(dtype), found.maximum.astype(dtype))
        at = jnp.asarray(indices)
        found = _of_one_dtype([leaves[i] for i in indices], ranks[at], weights[at])
        quantile = quantile.at[at].set(found.quantile.astype(dtype))
        maximum = maximum.at[at].set(found.maximum.astype(dtype))
    return Quantiles(quantile, maximum)


class _Search(NamedTuple):
    """What a pass leaves behind.

    Attributes:
      prefix: int[num_tensors], pattern of the value of the rank, as far as it is known; the lower
        bits are zero.
      seen: each int[num_tensors], from the last pass: how many values lie below each candidate,
        smallest pattern that does not lie below the first, and largest pattern.
    """

    prefix: jax.Array
    seen: Sequence[jax.Array]


def _of_one_dtype(leaves: Sequence[jax.Array], ranks: jax.Array, weights: jax.Array) -> Quantiles:
    """As :func:`absolute_quantiles`, for tensors of one dtype."""
    wide = leaves[0].dtype == jnp.float64
    floating, integer = (jnp.float64, jnp.int64) if wide else (jnp.float32, jnp.int32)
    lowest = _ZERO_BITS.get(str(leaves[0].dtype), 0)
    # In the order of the stacks: their numbers are then neighbours, and nothing is to be gathered.
    order = Stacks(leaves).order
    leaves, ranks = [leaves[i] for i in order], _in_order(ranks, order)
    stacks = Stacks(leaves)
    arrays = stacks.arrays(leaves)
    passes = (8 * jnp.dtype(integer).itemsize - lowest) // _DIGIT_BITS

    def one_pass(index: jax.Array, search: _Search) -> _Search:
        # The last pass repeats the lowest digit, now known, to see what lies just above the value.
        shift = jnp.maximum(passes - 1 - index, 0) * _DIGIT_BITS + lowest
        shift = shift.astype(integer)
        # Worked out for all tensors at once: in their kernels it would be, anew, for each element.
        steps = jnp.arange(1, _CANDIDATES + 1, dtype=integer) << shift
        table = _unpack.computed_once(search.prefix + steps[:, None])
        # Tied to what the loop changes, lest XLA takes `abs` out of it: a copy of the gradients.
        tied, table = lax.optimization_barrier((arrays, table))
        looks = stacks.each(_look, tied, numbers=_columns(table, leaves, arrays))
        # Vectors, not one matrix: a kernel that joins five times as many takes more than five.
        seen = [stacks.vector(column) for column in zip(*looks, strict=True)]
        digit = jnp.zeros_like(search.prefix)
        for i in range(_CANDIDATES):
            # Patterns beyond the largest are negative.
            valid = search.prefix + steps[i] > 0
            digit += ((seen[i] <= ranks) & valid).astype(integer)
        found = jnp.where(index < passes, search.prefix + (digit << shift), search.prefix)
        return _Search(found, seen)

    number = len(leaves)
    zeros = jnp.zeros(number, integer)
    start = _Search(zeros, [zeros] * (_CANDIDATES + 2))
    found = lax.fori_loop(0, passes + 1, one_pass, _norms.varying_like(start, leaves))
    back = np.argsort(order)
    at_most, *_, above, most = (_in_order(column, back) for column in found.seen)
    prefix = _in_order(found.prefix, back)
    # The value of the next rank: the same one if it occurs often enough, else the next larger.
    upper = jnp.where(at_most > _in_order(ranks, back) + 1, prefix, above)
    low, high, largest = (
        lax.bitcast_convert_type(pattern, floating).astype(weights.dtype)
        for pattern in (prefix, upper, most)
    )
    # At weight 0 there may be no next value.
    return Quantiles(low + jnp.where(weights > 0, weights * (high - low), 0), largest)


def _columns(
    table: jax.Array, leaves: Sequence[jax.Array], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """Each array's columns of a table: ``[c]``, or of several tensors ``[c, k]``.

    Args:
      table: ``[c, num_tensors]``, in the order of the tensors.
      leaves: tensors, first those that are arrays by themselves.
      arrays: as ``Stacks`` makes them.
    """
    alone = sum(array is leaf for array, leaf in zip(arrays, leaves, strict=False))
    found = [_places.at(table, place) for place in _places.places(range(alone))]
    for array in arrays[alone:]:
        found.append(table[:, alone : alone + array.shape[0]])
        alone += array.shape[0]
    return found


def _in_order(vector: jax.Array, order: np.ndarray) -> jax.Array:
    """A vector's entries in another order, itself if that is the one that they have."""
    return vector if np.array_equal(order, np.arange(order.size)) else vector[order]


@jax.jit  # traced once a shape
def _look(leaf: jax.Array, candidates: jax.Array) -> Sequence[jax.Array]:
    """Three counts below candidates, smallest pattern above the first, and largest pattern.

    From one read, and by one kernel for all tensors of a shape.

    Args:
      leaf: a tensor.
      candidates: ``[3]``.
    """
    integer = candidates.dtype
    floating = jnp.float64 if integer == jnp.int64 else jnp.float32
    pattern = lax.bitcast_convert_type(lax.abs(leaf.astype(floating)), integer)
    most = jnp.asarray(jnp.iinfo(integer).max, integer)
    zero = jnp.zeros((), integer)
    less = [pattern < candidates[i] for i in range(_CANDIDATES)]
    below = [lax.convert_element_type(each, integer) for each in less]
    above = lax.select(less[0], lax.full_like(pattern, most), pattern)
    return lax.reduce(
        (*below, above, pattern),
        (*[zero] * _CANDIDATES, most, zero),
        lambda x, y: (
            *(a + b for a, b in zip(x[:-2], y[:-2], strict=True)),
            lax.min(x[-2], y[-2]),
            lax.max(x[-1], y[-1]),
        ),
        tuple(range(leaf.ndim)),
    )
