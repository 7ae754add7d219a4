"""Learning-rate schedules by name: what ``optim.schedule`` of a configuration becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from jaxclip.optim import _sections


def learning_rate_schedule(config: Mapping[str, Any], total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates before this one.

    Args:
      config: the ``optim`` section: ``learning_rate``, and ``schedule`` (default: constant), a
        mapping of ``name`` and options. Options of all: ``warmup_steps`` (default 0), in which the
        rate grows linearly; update number k of them (from 1) has k / warmup_steps of the full rate,
        so that none is wasted on a rate of zero. By name:

        * ``constant``;
        * ``cosine``, ``linear``: from the full rate to ``final_fraction`` (0) of it at
          ``total_steps``;
        * ``rsqrt``: falls with the inverse square root of the updates,
          ``sqrt(timescale / (timescale + updates since the warm-up))``, ``timescale`` = 10 000.

        ``constant`` and ``rsqrt`` may end in a ``cooldown_steps`` (0) long linear descent to
        ``final_fraction`` (0) of what they reached.
      total_steps: updates of the run.

    Returns:
      An ``optax.Schedule``.

    Raises:
      ValueError: an unknown name or option, or a number out of its range.
    """
    peak = _sections.number("optim.learning_rate", config.get("learning_rate"))
    name, options = _sections.named("optim.schedule", config.get("schedule", "constant"))
    make = _sections.lookup("optim.schedule.name", name, _SCHEDULES)
    warmup_steps = _sections.count("optim.schedule.warmup_steps", options.pop("warmup_steps", 0))
    _sections.check_known(
        "optim.schedule", name, options, make, extra=("warmup_steps",), hidden=("peak", "steps")
    )
    cooldown_steps = _sections.count(
        "optim.schedule.cooldown_steps", options.get("cooldown_steps", 0)
    )
    if warmup_steps + cooldown_steps > total_steps:
        parts = "warmup_steps" + (" + cooldown_steps" if cooldown_steps else "")
        raise ValueError(
            f"optim.schedule: {parts} = {warmup_steps + cooldown_steps} is more than "
            f"total_steps={total_steps}; lower it, or train longer"
        )
    schedule = make(peak, total_steps - warmup_steps, **options)
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _constant(
    peak: float, steps: int, cooldown_steps: int = 0, final_fraction: float = 0.0
) -> optax.Schedule:
    schedule = optax.constant_schedule(peak)
    return _cooled(schedule, steps, cooldown_steps, final_fraction)


def _cosine(peak: float, steps: int, final_fraction: float = 0.0) -> optax.Schedule:
    # A run of warm-up alone never gets here, but optax refuses to decay in no time.
    return optax.cosine_decay_schedule(peak, max(steps, 1), alpha=_fraction(final_fraction))


def _linear(peak: float, steps: int, final_fraction: float = 0.0) -> optax.Schedule:
    return optax.linear_schedule(peak, peak * _fraction(final_fraction), max(steps, 1))


def _rsqrt(
    peak: float,
    steps: int,
    timescale: float = 10_000.0,
    cooldown_steps: int = 0,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    scale = _sections.number("optim.schedule.timescale", timescale)
    if scale <= 0:
        raise ValueError(f"optim.schedule.timescale={timescale} must be > 0")

    def schedule(count: Any) -> Any:
        return peak * jnp.sqrt(scale / (scale + count))

    return _cooled(schedule, steps, cooldown_steps, final_fraction)


def _cooled(
    schedule: optax.Schedule, steps: int, cooldown_steps: int, final_fraction: float
) -> optax.Schedule:
    """The schedule with a linear descent in its last ``cooldown_steps``."""
    fraction = _fraction(final_fraction)
    if not cooldown_steps:
        return schedule
    descent = optax.linear_schedule(1.0, fraction, cooldown_steps, steps - cooldown_steps)
    return lambda count: schedule(count) * descent(count)


def _fraction(value: Any) -> float:
    fraction = _sections.number("optim.schedule.final_fraction", value)
    if not 0 <= fraction <= 1:
        raise ValueError(f"optim.schedule.final_fraction={value} must be in [0, 1]")
    return fraction


_SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "rsqrt": _rsqrt,
}
