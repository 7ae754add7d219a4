"""Checks of an objective's options: one clear line with the thing, the value and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

IMPLEMENTATIONS = ("plain", "blockwise")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Refuse a value that is none of some words.

    Args:
      name: of the option, ``"dcl.implementation"``.
      value: what was given.
      choices: what may be given.

    Raises:
      ValueError: another value.
    """
    choices = list(choices)
    if value not in choices:
        words = ", ".join(map(repr, choices[:-1]))
        raise ValueError(f"{name}={value!r}; use {words} or {choices[-1]!r}")


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, positive: bool = False
) -> None:
    """Refuse what is no number of [low, high].

    Args:
      name: of the option.
      value: what was given.
      low: least value.
      high: largest value.
      positive: refuse 0, too.

    Raises:
      ValueError: anything else, infinities and NaN included.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high and (value > 0 or not positive):
        return
    if positive and high == math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number")
    if high == math.inf:
        raise ValueError(f"{name}={value!r} must be a number of at least {low:g}")
    opening = "(" if positive else "["
    raise ValueError(f"{name}={value!r} must be a number in {opening}{low:g}, {high:g}]")


def check_count(name: str, value: Any, low: int = 1) -> None:
    """Refuse what is no whole number of at least ``low``.

    Raises:
      ValueError: anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")


def as_integers(name: str, value: Any, *, low: int = 1) -> tuple[int, ...]:
    """A list of whole numbers as a tuple.

    Raises:
      ValueError: it is no list of numbers of at least ``low``.
    """
    given = isinstance(value, Sequence) and not isinstance(value, str)
    if not given or not all(
        isinstance(n, int) and not isinstance(n, bool) and n >= low for n in value
    ):
        raise ValueError(f"{name}={value!r} must be a list of whole numbers of at least {low}")
    return tuple(value)
