"""Stable-SPAM's work on one tensor, and the numbers that it needs of all of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.optim import _base, _moments
from jaxclip.optim._norms import short_axes
from jaxclip.optim._stacks import Stacks
from jaxclip.optim.adaclip import average_maximum
from jaxclip.optim.adagn import average_norms


class Shared(NamedTuple):
    """Numbers that are the same for all tensors, scalars of the statistics' dtype.

    Attributes:
      b1, b2, theta, gamma1, gamma2: one minus the decay of that name.
      eps: ε.
      rate: λ.
    """

    b1: jax.Array
    b2: jax.Array
    theta: jax.Array
    gamma1: jax.Array
    gamma2: jax.Array
    eps: jax.Array
    rate: jax.Array


def numbers_of(
    leaves: list[jax.Array], before: list[jax.Array], shared: Shared, interval: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """What the steps of a part of the tensors need, for all of them at once.

    In a tensor's kernels it would be worked out, and compiled, once for every kernel that needs it.

    Args:
      leaves: gradients.
      before: M, a and b before, and the number of updates, this one included; one a tensor.
      shared: what is the same for all.
      interval: number of updates between resets.

    Returns:
      The numbers of :func:`step`, ``[num_tensors, 6]``; and s, M̂, M, a and b, one a tensor.
    """
    maximum, first, second, clock = before
    clock = clock.astype(interval.dtype)
    largest = _base.tensor_maxima(leaves, maximum.dtype)
    maximum, bound = average_maximum(maximum, largest, shared.theta, clock)
    shrink = jnp.where(largest > bound, _base.safe_divide(bound, largest, 1.0), 1.0)
    norms = _norms_within(leaves, shrink, bound, jnp.minimum(largest, bound))
    fresh = (shared.gamma1, shared.gamma2, shared.eps)
    first, second, target = average_norms(first, second, norms, *fresh, clock)
    since = jnp.where(clock < interval, clock, clock % interval + 1)
    columns = [
        jnp.where(jnp.isfinite(largest), shrink, jnp.nan),
        bound,
        _base.safe_divide(target, norms, 0.0),
        (clock % interval != 0).astype(norms.dtype),
        *(1 / _base.bias_correction(decay, since) for decay in (shared.b1, shared.b2)),
    ]
    return jnp.stack(columns, axis=1), (largest, bound, maximum, first, second)


def _norms_within(
    leaves: list[jax.Array], shrink: jax.Array, bound: jax.Array, largest: jax.Array
) -> jax.Array:
    """L2 norm of each tensor after AdaClip, whose elements are then at most ``largest``.

    Taking that out of the squares keeps them in range, and unlike a second look at tensors whose
    squares overflowed it needs no copy of the scaled tensors in memory.

    Args:
      leaves: gradients.
      shrink: factor on elements beyond the bound, one a tensor as all that follows.
      bound: M̂.
      largest: of the absolute values.
    """
    # What is subnormal has no finite inverse; its squares are zero.
    safe = jnp.where(largest >= jnp.finfo(largest.dtype).tiny, largest, 1)
    numbers = jnp.stack([shrink, bound, 1 / safe], axis=1)
    stacks = Stacks(leaves)
    sums = stacks.each(_square_sum, stacks.arrays(leaves), stacks.numbers(numbers))
    return safe * jnp.sqrt(stacks.vector(sums))


@jax.jit
def _square_sum(leaf: jax.Array, numbers: jax.Array) -> jax.Array:
    """Sum of the squares of a tensor after AdaClip; numbers as above."""
    clipped = _clip(short_axes(_moments.aside(leaf)), numbers)
    return jnp.sum(jnp.square(clipped * numbers[2]))


def _clip(leaf: jax.Array, numbers: jax.Array) -> jax.Array:
    """Elements beyond a bound (the second number) times a factor (the first)."""
    leaf = leaf.astype(numbers.dtype)
    return jnp.where(jnp.abs(leaf) > numbers[1], leaf * numbers[0], leaf)


@functools.partial(jax.jit, static_argnames=("dtype", "positive"))
def step(
    leaf: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    numbers: jax.Array,
    *,
    shared: Shared,
    dtype: Any,
    positive: bool,
) -> _moments.Step:
    """One tensor's step.

    Args:
      leaf: gradient.
      mu: first moment.
      nu: second moment.
      param: the parameter if it decays.
      numbers: ``[6]``: factor on elements beyond the bound (NaN to skip the tensor), the bound,
        factor on all, 0 at a reset (else 1), and factors for the bias of the moments.
      shared: what is the same for all.
      dtype: of the update.
      positive: whether ε is known to be above zero.
    """
    keep = numbers[0] == numbers[0]
    gradient = _clip(leaf, numbers) * numbers[2]
    old_mu, old_nu = (moment.astype(gradient.dtype) * numbers[3] for moment in (mu, nu))
    mu, m = _moments.store(keep, _moments.average(old_mu, gradient, shared.b1), mu)
    square = jnp.square(gradient)
    nu, v = _moments.store(keep, _moments.average(old_nu, square, shared.b2), nu)
    update = _moments.direction(m * numbers[4], v * numbers[5], shared.eps, positive)
    update = _moments.finish(keep, _moments.add_decay(update, shared.rate, param), dtype)
    return _moments.Step(update, mu, nu, keep)
