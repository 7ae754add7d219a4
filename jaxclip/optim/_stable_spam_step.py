"""Stable-SPAM's work on one tensor, and the numbers that it needs of all of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.optim import _base, _moments
from jaxclip.optim._norms import short_axes
from jaxclip.optim._stacks import Stacks
from jaxclip.optim._together import together
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


class Averages(NamedTuple):
    """What a tensor's numbers are averaged into, and the number of updates of its clock.

    Attributes:
      maximum: M, of largest absolute values.
      first: a, of norms.
      second: b, of squared norms.
      clock: int32, number of updates, this one included.
    """

    maximum: jax.Array
    first: jax.Array
    second: jax.Array
    clock: jax.Array


class _Clipping(NamedTuple):
    """AdaClip's numbers of a tensor.

    Attributes:
      maximum: M after this step.
      bound: M̂.
      shrink: factor on elements beyond the bound.
      safe: largest absolute value after AdaClip, or one if that has no finite inverse.
      inverse: one over that.
    """

    maximum: jax.Array
    bound: jax.Array
    shrink: jax.Array
    safe: jax.Array
    inverse: jax.Array


def numbers_of(
    leaves: list[jax.Array], before: Averages, shared: Shared, interval: jax.Array
) -> tuple[list[jax.Array], tuple[jax.Array, ...]]:
    """What the steps of a part of the tensors need, for all of them at once.

    In a tensor's kernels it would be worked out, and compiled, once for every kernel that needs it.

    Args:
      leaves: gradients.
      before: one number a tensor.
      shared: what is the same for all.
      interval: number of updates between resets.

    Returns:
      The six numbers of :func:`step`, ``[num_tensors]`` each; and s, M̂, M, a and b, one a tensor.
    """
    shape = before.maximum.shape
    largest = _base.tensor_maxima(leaves, before.maximum.dtype)
    clip = together(functools.partial(_clipping, shared=shared), (largest, before), shape)
    sums = _square_sums(leaves, clip)
    rest = functools.partial(_rest, shared=shared, interval=interval)
    columns, first, second = together(rest, (sums, largest, clip, before), shape)
    return columns, (largest, clip.bound, clip.maximum, first, second)


def _clipping(inputs: tuple[jax.Array, Averages], *, shared: Shared) -> _Clipping:
    """AdaClip's part, from the largest absolute values."""
    largest, before = inputs
    maximum, bound = average_maximum(before.maximum, largest, shared.theta, before.clock)
    shrink = jnp.where(largest > bound, _base.safe_divide(bound, largest, 1.0), 1.0)
    # What is subnormal has no finite inverse; its squares are zero.
    within = jnp.minimum(largest, bound)
    safe = jnp.where(within >= jnp.finfo(within.dtype).tiny, within, 1)
    return _Clipping(maximum, bound, shrink, safe, 1 / safe)


def _rest(
    inputs: tuple[jax.Array, jax.Array, _Clipping, Averages], *, shared: Shared, interval: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """AdaGN's part: numbers of :func:`step`, a and b."""
    sums, largest, clip, before = inputs
    clock = before.clock
    norms = clip.safe * jnp.sqrt(sums)
    fresh = (shared.gamma1, shared.gamma2, shared.eps)
    first, second, target = average_norms(before.first, before.second, norms, *fresh, clock)
    since = jnp.where(clock < interval, clock, clock % interval + 1)
    rescaled = _base.safe_divide(target, norms, 0.0)
    finite = jnp.isfinite(largest)
    correction1, correction2 = (
        _base.bias_correction(decay, since) for decay in (shared.b1, shared.b2)
    )
    columns = [
        jnp.where(finite, clip.shrink * rescaled, jnp.nan),
        rescaled,
        clip.bound,
        (clock % interval != 0).astype(norms.dtype),
        jnp.where(finite, 1 / correction1, 0.0),
        1 / correction2,
    ]
    return [column.astype(norms.dtype) for column in columns], first, second


def _square_sums(leaves: list[jax.Array], clip: _Clipping) -> jax.Array:
    """Sum of squares of each tensor after AdaClip, relative to its then largest element.

    Taking that out of the squares keeps them in range, and unlike a second look at tensors whose
    squares overflowed it needs no copy of the scaled tensors in memory.
    """
    columns = [clip.shrink * clip.inverse, clip.inverse, clip.bound]
    stacks = Stacks(leaves)
    numbers = stacks.numbers(columns)
    return stacks.vector(stacks.each(_square_sum, stacks.arrays(leaves), numbers=numbers))


@jax.jit
def _square_sum(leaf: jax.Array, numbers: jax.Array) -> jax.Array:
    """Sum of the squares of a tensor times the first number beyond the third, else the second."""
    return jnp.sum(jnp.square(_clip(short_axes(_moments.aside(leaf)), *numbers)))


def _clip(leaf: jax.Array, beyond: jax.Array, within: jax.Array, bound: jax.Array) -> jax.Array:
    """Elements beyond a bound times one factor, the others times another."""
    leaf = leaf.astype(bound.dtype)
    return _base.where(jnp.abs(leaf) > bound, leaf * beyond, leaf * within)


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
      numbers: ``[6]``: factor on elements beyond the bound (NaN to skip the tensor) and on the
        others, the bound, 0 at a reset (else 1), and factors for the bias of the moments (the first
        zero to skip the tensor).
      shared: what is the same for all.
      dtype: of the update.
      positive: whether ε is known to be above zero.
    """
    keep = numbers[0] == numbers[0]
    gradient = _clip(leaf, *numbers[:3])
    old_mu, old_nu = (moment.astype(gradient.dtype) * numbers[3] for moment in (mu, nu))
    mu, m = _moments.store(keep, _moments.average(old_mu, gradient, shared.b1), mu)
    square = jnp.square(gradient)
    nu, v = _moments.store(keep, _moments.average(old_nu, square, shared.b2), nu)
    update = _moments.direction(m * numbers[4], v * numbers[5], shared.eps, positive)
    update = _moments.add_decay(update, _base.where(keep, shared.rate, 0.0), param)
    return _moments.Step(update.astype(dtype), mu, nu)
