"""SPAM's work on one tensor, and where a tensor is in the rule's schedule."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.optim import _base, _moments
from jaxclip.optim._sample import Sampling


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


@functools.partial(jax.jit, static_argnames=("dtype", "sampling"))
def step(
    leaf: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    numbers: jax.Array,
    key: jax.Array | None,
    shared: Shared,
    *,
    dtype: Any,
    sampling: Sampling,
) -> _moments.Step:
    """One tensor's step.

    Args:
      leaf: gradient.
      mu: first moment.
      nu: second moment.
      param: the parameter if it decays.
      numbers: ``[3]``: factor on the direction, whether to reset and whether to clip.
      key: data of the key that chooses elements, ``None`` for a tensor that has all of them.
      shared: what is the same for all.
      dtype: of the update.
      sampling: how to choose.
    """
    scale, reset, clips = numbers[0], numbers[1] > 0, (numbers[2] > 0) & ~(numbers[1] > 0)
    gradient = _moments.squarable(leaf, shared.eps.dtype)
    # Of the gradient all elements must be finite, those that are not chosen, too.
    finite = jnp.isfinite(leaf)
    if key is not None:
        chosen = sampling.draw(jax.random.wrap_key_data(key, impl="threefry2x32"), leaf.shape)
        gradient = sampling.take(gradient, chosen)
        finite = jnp.isfinite(_base.tensor_maxima([leaf], gradient.dtype)[0])
        param = None if param is None else sampling.take(param, chosen)
    norm = _largest_ratio(_moments.aside(gradient, nu, finite), reset)
    keep = jnp.isfinite(norm)

    def since_reset(moment: jax.Array) -> jax.Array:
        return jnp.where(reset, 0, moment)

    clipped = _clip_spikes(gradient, nu, shared.theta, clips)
    m = _moments.average(since_reset(mu), clipped, shared.fresh1)
    mu, m = _moments.store(keep, m, mu)
    # All of mu before nu, which is then overwritten where it is.
    mu, m, gradient, nu = _moments.aside(mu, m, gradient, nu)
    square = jnp.square(_clip_spikes(gradient, nu, shared.theta, clips))
    nu, v = _moments.store(keep, _moments.average(since_reset(nu), square, shared.fresh2), nu)
    update = _moments.direction(scale * m, v, shared.eps)
    update = _moments.add_decay(update, shared.rate, param)
    if key is not None:
        update = sampling.put(update, chosen, leaf.shape[-1])
    return _moments.Step(_moments.finish(keep, update, dtype), mu, nu, (norm,))


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


def _largest_ratio(tensors: tuple[jax.Array, ...], reset: jax.Array) -> jax.Array:
    """Largest ``g² / v`` where v > 0, a finite number; NaN if the gradient is not finite.

    Args:
      tensors: gradient, second moment, and which elements of the gradient are finite.
      reset: whether the second moment is about to become zero.
    """
    gradient, nu, finite = tensors
    known = (nu > 0) & ~reset
    ratio = jnp.square(gradient) / jnp.where(known, nu.astype(gradient.dtype), 1)
    largest = jnp.finfo(ratio.dtype).max
    return _base.max_or_nan(jnp.where(known, jnp.minimum(ratio, largest), 0), ~finite)


def _clip_spikes(
    gradient: jax.Array, nu: jax.Array, theta: jax.Array, clips: jax.Array
) -> jax.Array:
    """The gradient with ``sqrt(theta v)`` for its spikes; v = 0 says nothing of what is one."""
    bound = theta * nu
    spike = clips & (jnp.square(gradient) > bound) & (nu > 0)
    return jnp.where(spike, jnp.sign(gradient) * jnp.sqrt(bound), gradient)


def key_data(period: jax.Array) -> jax.Array:
    """Keys for the tensors' choices of elements between two resets, as data ``[num_tensors, 2]``.

    Args:
      period: int32 ``[num_tensors]``, number of resets so far.
    """
    key = jax.random.key(0, impl="threefry2x32")

    def of_tensor(number: jax.Array, period: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, number), period)

    return jax.random.key_data(jax.vmap(of_tensor)(jnp.arange(period.size), period))
