"""Checks of options that several objectives share."""

from __future__ import annotations


def at_least(objective: str, least: float, **options: float) -> None:
    """Refuse options below a bound.

    Args:
      objective: name of the objective, for the error.
      least: the bound.
      options: values by name.

    Raises:
      ValueError: the first that is below, or no number.
    """
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not least <= value < float("inf"):
            raise ValueError(f"{objective}.{name}={value!r} must be a number of at least {least}")


def share(objective: str, **options: float) -> None:
    """Refuse options that are not in [0, 1).

    Raises:
      ValueError: the first that is not.
    """
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ValueError(f"{objective}.{name}={value!r} must be in [0, 1)")


def above_zero(objective: str, **options: float) -> None:
    """Refuse options that are not positive.

    Raises:
      ValueError: the first that is not.
    """
    for name, value in options.items():
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"{objective}.{name}={value!r} must be above 0")
