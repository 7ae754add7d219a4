"""Checks of an objective's options: one clear line with the thing, the value and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxclip.models import CLIPConfig
from jaxclip.registry import check_options

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


def filled(name: str, value: Any, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of dicts with a ``"key"`` of its own each, with defaults for what is not given.

    Args:
      name: of the option, ``"sam_clip.teachers"``.
      value: what was given.
      defaults: what a dict may have; ``"key"`` must be given.

    Raises:
      ValueError: it is no list of dicts, an unknown option (the nearest is named), or a key that
        is missing or given twice.
    """
    given = isinstance(value, Sequence) and not isinstance(value, str)
    if not given or not value or not all(isinstance(each, Mapping) for each in value):
        raise ValueError(f"{name}={value!r} must be a list of dicts of {', '.join(defaults)}")
    every = []
    for each in value:
        check_options(each, defaults, name)
        if not isinstance(each.get("key"), str) or not each["key"]:
            raise ValueError(f"{name}: {dict(each)!r} needs a 'key', the name in the records")
        every.append({**defaults, **each})
    keys = [each["key"] for each in every]
    if len(set(keys)) < len(keys):
        raise ValueError(f"{name}: the keys {keys} must differ")
    return every


def check_follows(name: str, teacher: str) -> None:
    """Refuse a teacher that does not follow the run, so that the term's own part has none.

    Args:
      name: of the method.
      teacher: kind of the teacher.

    Raises:
      ValueError: another kind than ``"ema"``.
    """
    if teacher != "ema":
        raise ValueError(
            f"{name} needs a teacher that follows the run, its own part included, but "
            f"teacher.kind={teacher!r}; set teacher.kind='ema'"
        )


def check_heads(name: str, sizes: CLIPConfig) -> None:
    """Refuse image towers without attention heads, as many as a term's own modules have.

    Raises:
      ValueError: with the way out.
    """
    if not hasattr(sizes.image, "num_heads"):
        raise ValueError(
            f"{name} has as many attention heads as the image tower, of which {sizes.image.kind!r} "
            "has none; set model.image.kind='vit'"
        )


def check_square_grid(name: str, sizes: CLIPConfig) -> None:
    """Refuse image towers whose tokens are not the patches of a square picture, row by row.

    Raises:
      ValueError: with the way out.
    """
    image = sizes.image
    if image.pool == "queries" or image.max_patches:
        raise ValueError(
            f"{name} finds patches by their place in a square grid; set model.image.pool to "
            f"another one than 'queries' and model.image.max_patches=0, got {image.pool!r} and "
            f"{image.max_patches}"
        )
