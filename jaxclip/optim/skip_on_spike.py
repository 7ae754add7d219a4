"""Skipping a whole step whose loss or gradient norm is far from those before it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxclip.optim import _base, _skip
from jaxclip.optim._norms import short_axes
from jaxclip.optim._together import together

# Fewer values than these say nothing of a standard deviation.
SHORTEST_HISTORY = 20


class SkipOnSpikeState(NamedTuple):
    """State of :func:`skip_on_spike`; scalars but for the histories and the wrapped state.

    Attributes:
      count: int32, number of updates, skipped ones included.
      skipped_count: int32, number of steps skipped so far, for whatever reason.
      norms: the last gradient norms, a ring ``[history_size]``.
      norms_seen: int32, how many norms were written to it.
      losses: the last losses, a ring ``[history_size]``; unused where no loss is given.
      losses_seen: int32, how many losses were written to it.
      inner_state: of the wrapped transformation.
      norm: global norm of the last gradient.
      threshold: the largest norm that the last step would have been done with; ``norm`` as long as
        there is too little history.
      clipped: bool, was the last step skipped.
      nonfinite_count: int32, number of steps skipped because gradient or loss was not finite.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    skipped_count: jax.Array
    norms: jax.Array
    norms_seen: jax.Array
    losses: jax.Array
    losses_seen: jax.Array
    inner_state: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def skip_on_spike(
    inner: optax.GradientTransformation,
    sigma_factor: _base.Hyperparameter = 6.0,
    history_size: int = 128,
    extra_args: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Leaves out steps whose loss or gradient norm is far out of the ordinary (OLMo's rule).

    With :math:`\mu_x` and :math:`\sigma_x` the mean and the (unbiased) standard deviation of the
    last ``history_size`` values before this step, for x the gradient's global norm and, if it is
    given, the loss,

    .. math::

      (u, s) \leftarrow \begin{cases}
        (0, s) & \text{if } |x - \mu_x| > k\, \sigma_x \text{ for one of them}, \\
        \mathrm{inner}(g, s) & \text{else.} \end{cases}

    On a skipped step all of the wrapped transformation's state stays as it was: moments, counts,
    schedules. A value that skips a step enters the history like any other, so that a level that has
    changed for good is taken as it is after a few steps. Nothing is skipped before
    ``max(20, history_size // 2)`` values are there, this step's included. As in OLMo's code a value
    far *below* the mean skips, too.

    Where this is not OLMo's code: values that are not finite skip the step but do not enter the
    history, which they would spoil for as many steps as it is long; and a value equal to all in a
    history without any spread does not skip (there 0 / 0 does).

    State: ``2 * history_size`` numbers, four more and the report. Cost: one reduction over the
    gradients.

    Args:
      inner: any transformation: an optimizer, or a chain of clippers and optimizer.
      sigma_factor: k, how many standard deviations are too many.
      history_size: number of steps that mean and deviation are taken of. Static.
      extra_args: names of the extra arguments that ``inner`` takes, if it does not take any as
        optax asks for (``optax.contrib.sam`` takes ``("grad_fn",)``).

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`SkipOnSpikeState`. Its
      ``update`` takes ``value``, the loss, if there is one at hand, and passes it on with all other
      extra arguments that the wrapped transformation takes. Give it always or never.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``history_size`` is not known when tracing.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.skip_on_spike(optax.sgd(0.1), history_size=40)
      >>> params = jnp.ones(2)
      >>> state = tx.init(params)
      >>> for step in range(30):
      ...     gradient = jnp.full(2, 1.0 + 0.1 * (step % 3))
      ...     updates, state = tx.update(gradient, state, params, value=2.0 + 0.1 * (step % 2))
      >>> updates, state = tx.update(gradient, state, params, value=9.0)
      >>> updates.tolist(), int(state.skipped_count)
      ([0.0, 0.0], 1)

    References:
      OLMo team, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2025; the rule is that of
      ``SkipStepOptimizer`` in OLMo-core.
    """
    _base.check_number("skip_on_spike.sigma_factor", sigma_factor, above=0)
    size = _base.static_integer("skip_on_spike.history_size", history_size, 2)
    shortest = max(SHORTEST_HISTORY, size // 2)
    _base.check_inner("skip_on_spike", inner)
    _skip.check_extra_args("skip_on_spike", extra_args)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Any) -> SkipOnSpikeState:
        dtype = _base.statistics_dtype(params)
        return SkipOnSpikeState(
            count=jnp.zeros((), jnp.int32),
            skipped_count=jnp.zeros((), jnp.int32),
            norms=jnp.zeros((size,), dtype),
            norms_seen=jnp.zeros((), jnp.int32),
            losses=jnp.zeros((size,), dtype),
            losses_seen=jnp.zeros((), jnp.int32),
            inner_state=inner.init(params),
            **_base.initial_report((), dtype),
        )

    def update_fn(
        updates: Any,
        state: SkipOnSpikeState,
        params: Any = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Any, SkipOnSpikeState]:
        dtype = state.norm.dtype
        leaves, _ = _base.flatten(updates)
        factor = _base.hyperparameter(sigma_factor, state.count, dtype)
        norm = _base.global_norm(leaves, dtype)
        seen = [(norm, state.norms_seen, *_moments_of(state.norms, state.norms_seen))]
        losses = state.losses
        if value is not None:
            loss = jnp.asarray(value, dtype)
            seen.append((loss, state.losses_seen, *_moments_of(losses, state.losses_seen)))
            losses = _remember(losses, state.losses_seen, loss)
        before = {name: getattr(state, name) for name in _SMALL}
        settle = functools.partial(_settle, factor=factor, shortest=shortest, size=size)
        skip, after = together(settle, (seen, before), ())
        arguments = _skip.extra_arguments(extra_args, value, extra)
        out, inner_state = inner.update(updates, state.inner_state, params, **arguments)
        out, inner_state = _skip.undo(skip, out, inner_state, state.inner_state)
        new_state = SkipOnSpikeState(
            norms=_remember(state.norms, state.norms_seen, norm),
            losses=losses,
            inner_state=inner_state,
            **after,
        )
        return out, new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


_SMALL = (
    "count",
    "skipped_count",
    "norms_seen",
    "losses_seen",
    "threshold",
    "nonfinite_count",
)


def _settle(
    inputs: tuple[list[tuple[jax.Array, ...]], dict[str, jax.Array]],
    *,
    factor: jax.Array,
    shortest: int,
    size: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether to skip the step, and the state's numbers after it; all are scalars.

    Args:
      inputs: for the norm and perhaps the loss the value, how many were seen, and mean and sum of
        squared deviations of those kept; and the state's numbers before.
      factor: number of standard deviations.
      shortest: length of a history from which on there are limits.
      size: most values that a history keeps.
    """
    series, before = inputs
    finite, spike = jnp.bool_(True), jnp.bool_(False)
    highs = []
    for value, number, mean, squares in series:
        low, high = _limits(number, mean, squares, factor, shortest, size)
        finite &= jnp.isfinite(value)
        spike |= (value < low) | (value > high)
        highs.append(high)
    skip, norm = spike | ~finite, series[0][0]
    bound = jnp.where(jnp.isfinite(highs[0]), highs[0], norm)
    seen = {"norms_seen": before["norms_seen"], "losses_seen": before["losses_seen"]}
    for (value, *_), name in zip(series, seen, strict=False):
        seen[name] = _base.increment_where(before[name], jnp.isfinite(value))
    return skip, {
        "count": optax.safe_increment(before["count"]),
        "skipped_count": _base.increment_where(before["skipped_count"], skip),
        **seen,
        "norm": norm,
        "threshold": jnp.where(finite, bound, before["threshold"]),
        "clipped": skip,
        "nonfinite_count": _base.increment_where(before["nonfinite_count"], ~finite),
    }


def _moments_of(history: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and sum of squared deviations of the values of a ring, of which some may be empty."""
    values = short_axes(history)
    filled = jnp.arange(history.size).reshape(values.shape) < seen
    number = jnp.minimum(seen, history.size).astype(history.dtype)
    mean = jnp.sum(_base.where(filled, values, 0.0)) / jnp.maximum(number, 1)
    return mean, jnp.sum(_base.where(filled, jnp.square(values - mean), 0.0))


def _limits(
    seen: jax.Array,
    mean: jax.Array,
    squares: jax.Array,
    factor: jax.Array,
    shortest: int,
    size: int,
) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest value that are no spike; infinite with too little history.

    Args:
      seen: how many values there were so far.
      mean: of those kept.
      squares: sum of their squared deviations.
      factor: number of standard deviations.
      shortest: number of values from which on there are limits, that of this step included.
      size: most values that are kept.
    """
    number = jnp.minimum(seen, size).astype(mean.dtype)
    margin = factor * jnp.sqrt(squares / jnp.maximum(number - 1, 1))
    # Equal values have a mean that rounding may put beside them.
    margin = jnp.maximum(margin, 4 * jnp.finfo(mean.dtype).eps * jnp.abs(mean))
    ready = seen + 1 >= shortest
    return jnp.where(ready, mean - margin, -jnp.inf), jnp.where(ready, mean + margin, jnp.inf)


def _remember(history: jax.Array, seen: jax.Array, value: jax.Array) -> jax.Array:
    """The ring with one more value, unless that is not finite."""
    bound = jnp.asarray(_base.LARGEST_SQUARABLE, history.dtype)
    value = jnp.broadcast_to(value, (1,))
    # The place is never negative: nothing has to be compiled for that.
    place = lax.rem(seen, jnp.asarray(history.size, seen.dtype))
    written = lax.dynamic_update_slice(
        history, lax.clamp(-bound, value, bound), (place,), allow_negative_indices=False
    )
    return _base.where(jnp.isfinite(value)[0], written, history)
