"""Numbers of a configuration that may change with the step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp


def as_weight(value: Any, name: str) -> Any:
    """The weight of a term as a function of the step, see :func:`as_schedule`.

    Args:
      value: a number or points.
      name: of the term, for errors.
    """
    return _schedule(value, f"weight={value!r} of objective {name!r}", math.inf)


def as_schedule(value: Any, name: str, high: float = math.inf) -> Any:
    """A number that may change with the step, as a function of the step.

    Args:
      value: a number, or ``[[step, number], ...]``: linear between the steps, constant outside.
      name: of the option, for errors.
      high: the largest number there may be.

    Returns:
      ``step -> float32[]``.

    Raises:
      ValueError: a number that is negative, too large or none, or steps that do not rise.
    """
    return _schedule(value, f"{name}={value!r}", high)


def _schedule(value: Any, what: str, high: float) -> Any:
    points = [[0, value]] if isinstance(value, (int, float)) else value
    try:
        steps, numbers = zip(*[(float(s), float(n)) for s, n in points], strict=True)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is neither a number nor [[step, number], ...]") from None
    if not all(0 <= number < math.inf for number in numbers):
        raise ValueError(f"{what} must not be negative")
    if max(numbers) > high:
        raise ValueError(f"{what} must be at most {high:g}")
    if any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{what}: its steps must rise")
    if len(set(numbers)) == 1:
        return lambda step: numbers[0]
    xs, ys = jnp.asarray(steps, jnp.float32), jnp.asarray(numbers, jnp.float32)
    return lambda step: jnp.interp(jnp.asarray(step, jnp.float32), xs, ys)
