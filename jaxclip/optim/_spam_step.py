"""SPAM's work on one tensor, and where a tensor is in the rule's schedule."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base, _decay, _moments
from jaxclip.optim._sample import Sampling, scrambled


class Shared(NamedTuple):
    """Numbers that are the same for all tensors, scalars of the statistics' dtype.

    Attributes:
      fresh1: 1 - β1.
      fresh2: 1 - β2.
      eps: ε.
      theta: θ.
      rate: λ.
    """

    fresh1: jax.Array
    fresh2: jax.Array
    eps: jax.Array
    theta: jax.Array
    rate: jax.Array


@functools.partial(jax.jit, static_argnames=("dtype", "sampling", "positive"))
def step(
    leaf: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    numbers: jax.Array,
    *,
    shared: Shared,
    dtype: Any,
    hashes: jax.Array | None,
    sampling: Sampling,
    positive: bool,
) -> _moments.Step:
    """One tensor's step.

    Args:
      leaf: gradient.
      mu: first moment.
      nu: second moment.
      param: the parameter if it decays.
      numbers: ``[3]``: factor on the direction, 1 at a reset (else 0), and θ, which is infinite
        where nothing is clipped. ``[5]`` where there are tensors whose moments do not hold all of
        their elements: halves of the seed that chooses these.
      shared: what is the same for all.
      dtype: of the update.
      hashes: those of ``sampling`` for the gradient's shape, ``None`` for all elements.
      sampling: how to choose.
      positive: whether ε is known to be above zero.
    """
    scale, reset, theta = numbers[0], numbers[1], numbers[2]
    gradient = leaf.astype(shared.eps.dtype)
    if hashes is not None:
        # As arrays to the last: reshapings on the way take XLA's passes one more round each.
        upper, lower = numbers[3:4].astype(jnp.uint32), numbers[4:5].astype(jnp.uint32)
        seed = (upper * 2**16 + lower).reshape(())
        # Of the gradient all elements must be finite, those that are not chosen, too.
        gradient, places = sampling.take_finite(gradient, sampling.draw(seed, hashes))
        param = None if param is None else sampling.take(param, places)
    ratio, kept = _largest_ratio(gradient, nu, jnp.isfinite(gradient))
    # Where an element is not finite these change nothing.
    alive = 1 - kept * reset
    fresh1, fresh2 = kept * shared.fresh1, kept * shared.fresh2

    bound = _bound(nu, theta)
    clipped = _within(gradient, jnp.sqrt(bound))
    mu, m = _moments.stored(_moments.average(mu * alive, clipped, fresh1), mu)
    square = _lesser(jnp.square(gradient), bound)
    nu, v = _moments.stored(_moments.average(nu * alive, square, fresh2), nu)
    update = _moments.direction(kept * scale * m, v, shared.eps, positive)
    update = _decay.add_decay(update, kept * shared.rate, param)
    if hashes is not None:
        update = sampling.put(update, places, leaf.shape[-1])
    return _moments.Step(update.astype(dtype), mu, nu, (ratio, kept))


class Phase(NamedTuple):
    """Where each tensor is in the rule's schedule, ``[num_tensors]`` each.

    Attributes:
      period: int32, number of resets so far, that of this update included.
      reset: bool, whether this update begins with one.
      clips: bool, whether the grace period is over.
      warmup: factor on the update.
    """

    period: jax.Array
    reset: jax.Array
    clips: jax.Array
    warmup: jax.Array


def phase(clock: jax.Array, reset_interval: Any, warmup: Any, grace: Any, dtype: Any) -> Phase:
    """The phase at an update, the first of which is number one."""
    # inject_hyperparams makes floats of integers.
    interval = jnp.asarray(reset_interval).astype(jnp.int32)
    period, since = clock // interval, clock % interval
    length = jnp.asarray(warmup, dtype)
    # 1 - 0.99 (1 + cos 2x) / 2 without the cancellation.
    x = jnp.pi / 2 * since.astype(dtype) / (length + 1)
    rising = 0.01 + 0.99 * jnp.square(jnp.sin(x))
    return Phase(
        period=period,
        reset=since == 0,
        clips=since >= jnp.asarray(grace),
        warmup=jnp.where((period > 0) & (since < length), rising, 1.0).astype(dtype),
    )


# As float32 has it.
_LARGEST_SQUARE = float(np.square(np.float32(_base.LARGEST_SQUARABLE)))


def _largest_ratio(
    gradient: jax.Array, nu: jax.Array, finite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Largest ``g² / v`` where v > 0, perhaps infinite, and one if the gradient is finite, else 0.

    The factor, and not a choice for every element: kernels with it compile in four fifths of the
    time.
    """
    square = jnp.minimum(jnp.square(gradient), _LARGEST_SQUARE)
    known = _base.where(nu > 0, nu, float("inf")).astype(square.dtype)
    return _base.max_and_all(square / known, finite)


def _bound(nu: jax.Array, theta: jax.Array) -> jax.Array:
    """Largest square of an element: ``theta v``, but v = 0 says nothing of spikes."""
    bound = theta * jax.lax.stop_gradient(nu).astype(theta.dtype)
    return _base.where(bound > 0, jnp.minimum(bound, _LARGEST_SQUARE), _LARGEST_SQUARE)


def _lesser(values: jax.Array, bound: jax.Array | float) -> jax.Array:
    """The values where they are below a bound, which is finite, and it elsewhere, for NaN, too."""
    return _base.where(values < bound, values, bound)


def _within(values: jax.Array, limit: jax.Array) -> jax.Array:
    """The values, at most so large in size; for NaN the limit."""
    return _base.where(values > -limit, _lesser(values, limit), -limit)


def halves(seed: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The upper and the lower 16 bits of uint32 as floats, to go with the other numbers."""
    return (seed >> 16).astype(dtype), (seed & 0xFFFF).astype(dtype)


def seeds(period: jax.Array) -> jax.Array:
    """Seeds of the tensors' choices of elements between two resets, uint32 ``[num_tensors]``.

    Args:
      period: int32 ``[..., num_tensors]``, number of resets so far.
    """
    number = jnp.arange(period.shape[-1], dtype=jnp.uint32)
    return scrambled(scrambled(number) + period.astype(jnp.uint32))
