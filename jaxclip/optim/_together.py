"""Many small results from one kernel.

A rule's state is a dozen numbers (or vectors with an entry a tensor). XLA on CPUs writes a kernel
for each of them, and compiles in each what they have in common: some 15 ms a kernel, a good part of
what a transformation takes to compile. A reduction may have several results, though, and is one
kernel with all that its operands are computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

T = TypeVar("T")
S = TypeVar("S")


def together(function: Callable[[T], S], inputs: T, shape: tuple[int, ...]) -> S:
    """What a function of small arrays gives; on CPUs all of it from one kernel.

    To ``jax.grad`` it is constant: JAX differentiates no reduction with several results.

    Args:
      function: works element by element on the leaves of its argument, whatever leading axes they
        have. Arrays that it has from elsewhere must broadcast to ``shape``.
      inputs: a tree of arrays, each of that shape or a scalar.
      shape: of all results: ``()`` or ``[num_tensors]``.

    Returns:
      The function's tree of arrays.
    """

    def plainly(given: T) -> S:
        return jax.tree.map(
            lambda leaf: lax.convert_element_type(
                jnp.broadcast_to(lax.stop_gradient(leaf), shape), leaf.dtype
            ),
            jax.tree.map(jnp.asarray, function(given)),
        )

    def by_a_reduction(given: T) -> S:
        # Over pairs, one of which does not count: a sum over one would be no reduction. Of the
        # inputs the others are zero, and not the same again, which XLA would see.
        pairs = jax.tree.map(lambda leaf: first_of_two(leaf, shape), given)
        results: list[Any]
        treedef: Any
        results, treedef = jax.tree.flatten(function(pairs))
        terms = [
            _masked(jnp.broadcast_to(lax.stop_gradient(result), (2, *shape)), shape)
            for result in map(jnp.asarray, results)
        ]
        if not terms:
            return treedef.unflatten([])
        zeros = [jnp.zeros((), term.dtype) for term in terms]
        return treedef.unflatten(lax.reduce(tuple(terms), tuple(zeros), _add_each, (0,)))

    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(inputs)):
        return plainly(inputs)  # step by step, nothing is compiled together
    return lax.platform_dependent(inputs, cpu=by_a_reduction, default=plainly)


def in_one_kernel(function: Callable[..., S], *tensors: jax.Array | None) -> S:
    """What a function of small tensors gives; on CPUs all of it from one kernel.

    As :func:`together`. Other kernels take the results, and do not compute them.

    Args:
      function: of the tensors, element by element. All that it gives is of their shape.
      *tensors: of one shape, or ``None``.
    """

    def by_a_reduction(*given: jax.Array | None) -> S:
        results: list[jax.Array]
        treedef: Any
        pairs = jax.tree.map(lambda leaf: first_of_two(leaf, leaf.shape), given)
        results, treedef = jax.tree.flatten(jax.vmap(function)(*pairs))
        return treedef.unflatten(_sums_of_first(results))

    return lax.platform_dependent(*tensors, cpu=by_a_reduction, default=function)


def settled(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays of one shape, for other kernels to take and not to compute; for CPUs only.

    All by one kernel, which also has what they are computed from, if they end in no division.
    """
    return _sums_of_first([jnp.broadcast_to(array, (2, *array.shape)) for array in arrays])


def _sums_of_first(pairs: Sequence[jax.Array]) -> list[jax.Array]:
    """The first of each pair ``[2, ...]`` of arrays of one shape, by a reduction."""
    # That has results of one floating type.
    floats = [pair.dtype for pair in pairs if jnp.issubdtype(pair.dtype, jnp.floating)]
    dtypes = [jnp.result_type(*floats) if pair.dtype in floats else pair.dtype for pair in pairs]
    terms = [
        _masked(pair.astype(dtype), pair.shape[1:])
        for pair, dtype in zip(pairs, dtypes, strict=True)
    ]
    sums = lax.reduce(terms, [np.zeros((), dtype) for dtype in dtypes], _add_each, (0,))
    return [found.astype(pair.dtype) for found, pair in zip(sums, pairs, strict=True)]


def first_of_two(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``[2, *shape]``: the array, and zeros."""
    return _masked(jnp.broadcast_to(leaf, (2, *shape)), shape)


def _masked(pair: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The pair with zeros in the second place."""
    first = lax.broadcast_in_dim(np.asarray([True, False]), (2, *shape), (0,))
    return lax.select(first, pair, lax.full_like(pair, 0))


def _add_each(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(a | b if a.dtype == jnp.bool_ else a + b for a, b in zip(left, right, strict=True))
