"""Stable-SPAM's work on one tensor, and the numbers that it needs of all of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base, _decay, _moments
from jaxclip.optim._norms import short_axes
from jaxclip.optim._stacks import LARGEST
from jaxclip.optim._together import in_one_kernel, together
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
      safe: largest absolute value after AdaClip, or one if that has no finite inverse.
      columns: the three numbers of :func:`_clipped`.
    """

    maximum: jax.Array
    bound: jax.Array
    safe: jax.Array
    columns: list[jax.Array]


def step_all(
    part: _moments.Tensors,
    before: Averages,
    shared: Shared,
    interval: jax.Array,
    positive: bool,
) -> tuple[list[list[jax.Array]], tuple[jax.Array, ...]]:
    """The step of a part of the tensors.

    Numbers are worked out for all tensors at once: in a tensor's kernels they would be worked out,
    and compiled, once for every kernel that needs them.

    Args:
      part: from ``_moments.parts``.
      before: ``[num_tensors]`` each.
      shared: what is the same for all.
      interval: number of updates between resets.
      positive: whether ε is known to be above zero.

    Returns:
      Updates, first and second moments, a list of tensors each; and s, M̂, M, a and b, one a tensor.
    """
    shape = before.maximum.shape
    stacks = _moments.stacks_of(part, by_one_kernel=True)
    leaves = stacks.arrays(part.leaves)
    look = functools.partial(_largest, dtype=before.maximum.dtype)
    largest = stacks.vector(stacks.each(look, leaves))
    seasons = _seasons(before.clock, shared, interval)
    clip = together(functools.partial(_clipping, shared=shared), (largest, before, seasons), shape)
    clipped = stacks.each(_clipped, leaves, numbers=stacks.numbers(clip.columns))
    sums = stacks.vector(stacks.each(_square_sum, clipped))
    clipped = [_seen_otherwise(array) for array in clipped]
    rest = functools.partial(_rest, shared=shared)
    inputs = (sums, largest, clip, before, seasons)
    columns, norm, first, second = together(rest, inputs, shape)
    steps = stacks.each(
        functools.partial(step, eps=shared.eps, positive=positive),
        clipped,
        *(stacks.arrays(column) for column in (part.mu, part.nu, part.params)),
        numbers=stacks.numbers(columns),
        static={"dtype": part.dtypes},
    )
    *results, _ = zip(*steps, strict=True)
    tensors = stacks.tensors(results, settled=True)
    return tensors, (norm, clip.bound, clip.maximum, first, second)


class _Seasons(NamedTuple):
    """What follows from a tensor's number of updates.

    Attributes:
      reset: 1 at a reset, else 0.
      theta, gamma1, gamma2, b1, b2: what an average with this decay has to be divided by.
    """

    reset: jax.Array
    theta: jax.Array
    gamma1: jax.Array
    gamma2: jax.Array
    b1: jax.Array
    b2: jax.Array


def _seasons(clock: jax.Array, shared: Shared, interval: jax.Array) -> _Seasons:
    """By one kernel with one exponential function: that is long, and five take 60 ms to compile."""
    decays = jnp.stack([shared.theta, shared.gamma1, shared.gamma2, shared.b1, shared.b2])
    of_averages = np.arange(5)[:, None] < 3

    def work_out(clock: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = jax.lax.rem(clock, jnp.broadcast_to(interval, clock.shape))
        since = jnp.where(clock < interval, clock, part + 1)
        exponent = jnp.where(of_averages, clock, since)
        return _base.bias_correction(decays[:, None], exponent), (part == 0).astype(decays.dtype)

    clocks = jnp.broadcast_to(clock, (5, *clock.shape))
    corrections, reset = in_one_kernel(work_out, clocks)
    return _Seasons(reset[0], *corrections)


def _clipping(inputs: tuple[jax.Array, Averages, _Seasons], *, shared: Shared) -> _Clipping:
    """AdaClip's part, from the largest absolute values."""
    largest, before, seasons = inputs
    maximum, bound = average_maximum(before.maximum, largest, shared.theta, seasons.theta)
    shrink = jnp.where(largest > bound, _base.safe_divide(bound, largest, 1.0), 1.0)
    # What is subnormal has no finite inverse; its squares are zero.
    within = jnp.minimum(largest, bound)
    finite = jnp.isfinite(largest)
    safe = jnp.where(finite & (within >= jnp.finfo(within.dtype).tiny), within, 1)
    inverse = 1 / safe
    columns = [
        jnp.where(finite, inverse * shrink, 0),
        inverse,
        jnp.where(finite, bound, 0),
    ]
    return _Clipping(maximum, bound, safe, columns)


def _rest(
    inputs: tuple[jax.Array, jax.Array, _Clipping, Averages, _Seasons], *, shared: Shared
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
    """AdaGN's part: numbers of :func:`step`, s (NaN if an element is), a and b."""
    sums, largest, clip, before, seasons = inputs
    finite = jnp.isfinite(sums) & jnp.isfinite(largest)
    norms = clip.safe * jnp.sqrt(jnp.where(finite, sums, 0))
    fresh = (shared.gamma1, shared.gamma2)
    corrections = (seasons.gamma1, seasons.gamma2)
    first, second, target = average_norms(
        before.first, before.second, norms, fresh, shared.eps, corrections
    )
    rescaled = _base.safe_divide(target, norms, 0.0)
    kept = finite.astype(norms.dtype)
    columns = [
        clip.safe * rescaled,
        1 - kept * seasons.reset,
        kept * shared.b1,
        kept * shared.b2,
        kept / seasons.b1,
        1 / seasons.b2,
        kept * shared.rate,
    ]
    # XLA's maximum may lose NaN on CPUs, but not the sum.
    norm = jnp.where(finite | jnp.isinf(largest), largest, jnp.nan)
    return [column.astype(norms.dtype) for column in columns], norm, first, second


@functools.partial(jax.jit, static_argnames="dtype")  # traced once a shape
def _largest(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Largest absolute value of a tensor, whatever there is if it has NaN.

    Not of ``abs(leaf)``, which XLA would write to memory on CPUs, but has a library for maxima of
    products: nothing to compile for large tensors.
    """
    leaf = short_axes(jax.lax.stop_gradient(leaf))
    sizes = leaf * jax.lax.sign(leaf)
    zero = jnp.zeros((), sizes.dtype)
    return jax.lax.reduce(sizes, zero, jax.lax.max, tuple(range(sizes.ndim))).astype(dtype)


@jax.jit  # traced once a shape
def _clipped(leaf: jax.Array, numbers: jax.Array) -> jax.Array:
    """AdaClip of a tensor, relative to its then largest element: at most one in size.

    Held in memory, for the sum of squares and for both moments. That keeps squares in range, and
    all further kernels short.

    Args:
      leaf: gradient.
      numbers: ``[3]``: factor on elements beyond the bound and on the others; the bound. Finite,
        also of a tensor that is not.
    """
    leaf = leaf.astype(numbers.dtype)
    within = jnp.abs(leaf) <= numbers[2]
    return _base.where(within, leaf * numbers[1], leaf * numbers[0])


def _seen_otherwise(array: jax.Array) -> jax.Array:
    """The same array, which no kernel overwrites.

    Some would, others would not, as XLA comes upon a free place in memory for their results, and
    these are different kernels to it. It does not if an element's place in the array is not that
    in the result.
    """
    with_axis = jax.lax.optimization_barrier(jax.lax.expand_dims(array, (0,)))
    return jax.lax.squeeze(with_axis, (0,))


@jax.jit  # traced once a shape
def _square_sum(clipped: jax.Array) -> jax.Array:
    """Sum of squares."""
    return jnp.sum(jnp.square(short_axes(clipped)))


@functools.partial(jax.jit, static_argnames=("dtype", "positive"))
def step(
    clipped: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    numbers: jax.Array,
    *,
    eps: jax.Array,
    dtype: Any,
    positive: bool,
) -> _moments.Step:
    """One tensor's step.

    Args:
      clipped: gradient after AdaClip, up to a factor.
      mu: first moment.
      nu: second moment.
      param: the parameter if it decays.
      numbers: ``[7]``: factor on the gradient, 0 at a reset (else 1), weights of the gradient in
        the moments, factors for their bias, and λ. The weights, the first of these factors and λ
        are zero to skip the tensor.
      eps: ε.
      dtype: of the update.
      positive: whether ε is known to be above zero.
    """

    def plainly(
        clipped: jax.Array, mu: jax.Array, nu: jax.Array, param: jax.Array | None
    ) -> _moments.Step:
        # NaN only where the weights are zero.
        gradient = _base.where(clipped == clipped, clipped, 0.0) * numbers[0]
        old_mu, old_nu = (moment.astype(gradient.dtype) * numbers[1] for moment in (mu, nu))
        mu, m = _moments.stored(_moments.average(old_mu, gradient, numbers[2]), mu)
        nu, v = _moments.stored(_moments.average(old_nu, jnp.square(gradient), numbers[3]), nu)
        update = _moments.direction(m * numbers[4], v * numbers[5], eps, positive)
        update = _decay.add_decay(update, numbers[6], param)
        return _moments.Step(update.astype(dtype), mu, nu)

    if clipped.size <= LARGEST:
        return in_one_kernel(plainly, clipped, mu, nu, param)
    return plainly(clipped, mu, nu, param)
