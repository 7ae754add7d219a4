"""Spikes judged inside the step, and what is done about them there.

The judgement is part of the step and its history part of the state: it is made of replicated
numbers, so that all hosts decide alike, and a run that goes on from a checkpoint decides as it
would have without the stop.

A step is a spike if its loss, or the norm of its gradient, lies more than ``threshold`` standard
deviations above the mean of the last ``window`` finite values (:mod:`jaxclip.train.spikes` judges a
finished curve by the same rule). One thing differs: a value above that limit enters the history as
the limit. One spike of a thousand times the usual value would else hide the next ``window`` ones,
and leaving spikes out would take a lasting rise for a spike for ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.spike_actions import as_actions

# Fields of optimizer states that hold averages of past gradients.
_MOMENTS = ("mu", "nu", "trace")

# A constant stretch has no deviation: a last-digit difference from its mean is no spike.
_ROUNDING = 1e-6


class GuardState(NamedTuple):
    """What the judgement remembers; saved with the run.

    Attributes:
      history: float32[2, window], the last losses and gradient norms, a ring.
      seen: int32[], how many of each were written to it.
      spikes: int32[], steps that were spikes.
      skipped: int32[], steps left out because they were.
      lowered_until: int32[], the learning rate is lowered in the steps before this one.
    """

    history: jax.Array
    seen: jax.Array
    spikes: jax.Array
    skipped: jax.Array
    lowered_until: jax.Array


class Judgement(NamedTuple):
    """What is said of a step.

    Attributes:
      spike: bool[].
      above: bool[2], whether the loss and the gradient norm were above their limits.
      mean: float32[2], of the history.
      limit: float32[2]; infinite while there is too little history.
    """

    spike: jax.Array
    above: jax.Array
    mean: jax.Array
    limit: jax.Array


class Ruling(NamedTuple):
    """What is done in a step.

    Attributes:
      judged: what is said of it.
      clip: float32[], what the gradient is multiplied by.
      rate: float32[], what the updates are multiplied by.
    """

    judged: Judgement
    clip: jax.Array
    rate: jax.Array


@dataclasses.dataclass(frozen=True)
class Guard:
    """The rule and the policies of a configuration.

    Attributes:
      window: values in the history.
      threshold: in standard deviations.
      min_history: fewest values to judge by.
      actions: of :data:`jaxclip.spike_actions.ACTIONS`; empty to watch only.
      rate_factor: what ``"lower_rate"`` multiplies the learning rate by.
      rate_steps: for how many steps, the spike's own included.
    """

    window: int = 1000
    threshold: float = 10.0
    min_history: int = 100
    actions: tuple[str, ...] = ()
    rate_factor: float = 0.1
    rate_steps: int = 100

    def init(self) -> GuardState:
        """Nothing seen yet."""
        zero = jnp.zeros((), jnp.int32)
        # Separate buffers: the step donates them.
        return GuardState(
            jnp.zeros((2, self.window), jnp.float32), zero, zero + 0, zero + 0, zero + 0
        )

    def judge(self, state: GuardState, loss: jax.Array, norm: jax.Array) -> Judgement:
        """Judge a step by those before it, from its loss and gradient norm, float32[] each.

        One that is not finite is no spike.
        """
        values = jnp.stack([loss, norm]).astype(jnp.float32)
        count = jnp.minimum(state.seen, self.window)
        here = jnp.arange(self.window) < count
        number = jnp.maximum(count, 1).astype(jnp.float32)
        mean = jnp.sum(jnp.where(here, state.history, 0.0), axis=1) / number
        square = jnp.where(here, (state.history - mean[:, None]) ** 2, 0.0)
        deviation = jnp.sqrt(jnp.sum(square, axis=1) / number)
        limit = mean + self.threshold * deviation + _ROUNDING * jnp.abs(mean)
        limit = jnp.where(count >= self.min_history, limit, jnp.inf)
        above = (values > limit) & jnp.all(jnp.isfinite(values))
        return Judgement(jnp.any(above), above, mean, limit)

    def remember(
        self, state: GuardState, judged: Judgement, step: jax.Array, loss: jax.Array, norm: Any
    ) -> GuardState:
        """The state after a step; ``step`` is the number of steps before it."""
        values = jnp.stack([loss, norm]).astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(values))
        place = state.seen % self.window
        column = jnp.where(finite, jnp.minimum(values, judged.limit), state.history[:, place])
        spike = judged.spike.astype(jnp.int32)
        until = jnp.where(judged.spike, step + self.rate_steps, state.lowered_until)
        return GuardState(
            history=state.history.at[:, place].set(column),
            seen=state.seen + finite,
            spikes=state.spikes + spike,
            skipped=state.skipped + spike * ("skip" in self.actions),
            lowered_until=until if "lower_rate" in self.actions else state.lowered_until,
        )

    def rule(self, state: GuardState, step: jax.Array, loss: jax.Array, norm: jax.Array) -> Ruling:
        """Judge a step, and say what its policies come to; ``step`` as for :meth:`remember`."""
        judged = self.judge(state, loss, norm)
        return Ruling(
            judged, self.clip_factor(judged, norm), self.rate_factor_of(state, judged, step)
        )

    # Policies; each changes nothing unless it is among the actions.

    def skips(self, judged: Judgement) -> jax.Array:
        """bool[]: whether the step is to be left out."""
        return judged.spike & ("skip" in self.actions)

    def clip_factor(self, judged: Judgement, norm: jax.Array) -> jax.Array:
        """float32[]: what the gradient is multiplied by; a spike's norm comes to the mean's."""
        if "clip" not in self.actions:
            return jnp.ones((), jnp.float32)
        return jnp.where(judged.spike, jnp.minimum(1.0, judged.mean[1] / norm), 1.0)

    def clip(self, factor: jax.Array, grads: Any) -> Any:
        """The gradient times the factor of :meth:`clip_factor`."""
        if "clip" not in self.actions:
            return grads
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads)

    def rate_factor_of(self, state: GuardState, judged: Judgement, step: jax.Array) -> jax.Array:
        """float32[]: what the learning rate of this step is multiplied by."""
        if "lower_rate" not in self.actions:
            return jnp.ones((), jnp.float32)
        lowered = judged.spike | (step < state.lowered_until)
        return jnp.where(lowered, self.rate_factor, 1.0)

    def lower(self, factor: jax.Array, updates: Any) -> Any:
        """Updates times the factor of :meth:`rate_factor_of`."""
        if "lower_rate" not in self.actions:
            return updates
        return jax.tree.map(lambda u: (u * factor).astype(u.dtype), updates)

    def reset(self, spike: jax.Array, opt_state: Any, fresh: Callable[[], Any]) -> Any:
        """The optimizer's state, whose moments begin anew after a spike.

        A loop of one turn or none, as XLA keeps what goes around a loop in its place, but copies
        what goes through ``lax.cond``. Nobody may read the state of before it.
        """
        if "reset_moments" not in self.actions:
            return opt_state
        return jax.lax.while_loop(
            lambda carry: carry[0],
            lambda carry: (jnp.zeros_like(carry[0]), fresh_moments(carry[1], fresh())),
            (spike, opt_state),
        )[1]

    def metrics(self, state: GuardState, judged: Judgement, factor: jax.Array) -> dict[str, Any]:
        """What is recorded of a step; ``state`` is that after it.

        ``watch/spike`` is 1 for the loss, 2 for the gradient norm, 3 for both.
        """
        kind = judged.above[0] + 2 * judged.above[1]
        found = {"watch/spike": kind, "watch/spike_count": state.spikes}
        if "lower_rate" in self.actions:
            found["watch/rate_factor"] = factor
        return found


def has_moments(opt_state: Any) -> bool:
    """Whether an optimizer's state has averages of past gradients that can begin anew."""
    return any(map(_is_moments, jax.tree.leaves(opt_state, is_leaf=_is_moments)))


def fresh_moments(opt_state: Any, fresh: Any) -> Any:
    """A state whose parts with moments are those of a fresh one, their counts included.

    Moments of zero with an old count would be taken for averages without bias. Schedules have
    counts of their own, which stay, and so do clippers' statistics.
    """

    def choose(old: Any, new: Any) -> Any:
        return new if _is_moments(old) else old

    return jax.tree.map(choose, opt_state, fresh, is_leaf=_is_moments)


def _is_moments(node: Any) -> bool:
    return any(name in getattr(type(node), "_fields", ()) for name in _MOMENTS)


def from_config(config: Mapping[str, Any]) -> Guard | None:
    """The guard of a resolved configuration, or None where nothing watches and nothing acts."""
    watch, policy = config["watch"], config["on_spike"]
    actions = as_actions(policy["actions"])
    if not (actions or watch["enabled"]):
        return None
    return Guard(
        window=watch["window"],
        threshold=watch["threshold"],
        min_history=watch["min_history"],
        actions=actions,
        rate_factor=policy["rate_factor"],
        rate_steps=policy["rate_steps"],
    )
