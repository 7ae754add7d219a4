"""Many small results from one kernel.

A rule's state is a dozen numbers (or vectors with an entry a tensor). XLA on CPUs writes a kernel
for each of them, and compiles in each what they have in common: some 15 ms a kernel, a good part of
what a transformation takes to compile. A reduction may have several results, though, and is one
kernel with all that its operands are computed from.
"""

from __future__ import annotations

from collections.abc import Callable
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
        pairs = jax.tree.map(lambda leaf: _first_of_two(leaf, shape), given)
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
        pairs = jax.tree.map(lambda leaf: _first_of_two(leaf, leaf.shape), given)
        results, treedef = jax.tree.flatten(jax.vmap(function)(*pairs))
        terms = [_masked(result, result.shape[1:]) for result in results]
        # A reduction has results of one floating type.
        floats = [term.dtype for term in terms if jnp.issubdtype(term.dtype, jnp.floating)]
        wide = [
            jnp.result_type(term, *floats) if term.dtype in floats else term.dtype for term in terms
        ]
        terms = [term.astype(dtype) for term, dtype in zip(terms, wide, strict=True)]
        zeros = [np.zeros((), dtype) for dtype in wide]
        sums = lax.reduce(terms, zeros, _add_each, (0,))
        return treedef.unflatten(
            [found.astype(like.dtype) for found, like in zip(sums, results, strict=True)]
        )

    return lax.platform_dependent(*tensors, cpu=by_a_reduction, default=function)


def _first_of_two(leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``[2, *shape]``: the array, and zeros."""
    return _masked(jnp.broadcast_to(leaf, (2, *shape)), shape)


def _masked(pair: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The pair with zeros in the second place."""
    first = lax.broadcast_in_dim(np.asarray([True, False]), (2, *shape), (0,))
    return lax.select(first, pair, lax.full_like(pair, 0))


def _add_each(left: tuple[jax.Array, ...], right: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(a | b if a.dtype == jnp.bool_ else a + b for a, b in zip(left, right, strict=True))
