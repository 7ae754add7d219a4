"""Reading sections of a configuration strictly: names, options and numbers, or a clear error."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from jaxclip.registry import REQUIRED, hint, option_defaults, outside

T = TypeVar("T")


def plain(value: Any) -> Any:
    """``ml_collections.ConfigDict`` and other mappings as dicts, tuples as lists, recursively."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def lookup(key: str, name: Any, known: Mapping[str, T]) -> T:
    """The entry of a name, or what ``"package.module:member"`` imports.

    Raises:
      ValueError: there is none, naming the nearest one; or it can't be imported.
    """
    if is_outside(name):
        found: T = outside(key, name)
        if not callable(found):
            raise ValueError(f"{key}={name!r} is no function that makes a transformation")
        return found
    if name not in known:
        raise ValueError(f"unknown {key}={name!r}{hint(str(name), known)}")
    return known[name]


def is_outside(name: Any) -> bool:
    """Whether a name is that of somebody's own function, ``"package.module:member"``."""
    return isinstance(name, str) and ":" in name


def named(key: str, section: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a section ``{"name": …, **options}``, or of a name alone."""
    if isinstance(section, str):
        return section, {}
    if not isinstance(section, Mapping):
        raise ValueError(f"{key}={section!r} must be a name or a mapping with a name")
    options = dict(section)
    if "name" not in options:
        raise ValueError(f"{key}={section!r} has no name")
    return options.pop("name"), options


def check_known(
    key: str,
    name: str,
    options: Mapping[str, Any],
    factory: Callable[..., Any],
    *,
    extra: Collection[str] = (),
    hidden: Collection[str] = (),
    elsewhere: Collection[str] = (),
) -> None:
    """Refuse options that a factory does not take, and the lack of those it must have.

    Args:
      key: of the section, for the message.
      name: of the factory, for the message.
      options: to be given to it as keyword arguments.
      factory: any callable with a signature.
      extra: further option names, handled by the caller.
      hidden: arguments of the factory that the caller gives.
      elsewhere: what is no option here, but may have been meant.

    Raises:
      ValueError: an unknown option, naming the nearest one, or a missing one.
    """
    defaults = option_defaults(factory)
    known = [*(name for name in defaults if name not in hidden), *extra]
    for option in options:
        if option not in known:
            near = hint(option, [*known, *elsewhere])
            raise ValueError(f"{key}.{option}: {name!r} has no such option{near}")
    for option, default in defaults.items():
        if default is REQUIRED and option not in hidden and option not in options:
            raise ValueError(f"{key}.{option} is required by {name!r}; set it")


def number(key: str, value: Any) -> float:
    """A finite, non-negative number as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key}={value!r} must be a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{key}={value} must be a finite number >= 0")
    return float(value)


def check_moments(options: Mapping[str, Any]) -> None:
    """Refuse what makes NaN, or steps uphill, of an optimizer; optax looks at none of it.

    Raises:
      ValueError: a decay that is not in [0, 1), or a negative or infinite epsilon.
    """
    for name in ("b1", "b2", "b3", "decay", "momentum"):
        value = options.get(name)
        if value is not None and number(f"optim.{name}", value) >= 1:
            raise ValueError(f"optim.{name}={value} must be less than 1")
    for name in ("eps", "eps_root"):
        if options.get(name) is not None:
            number(f"optim.{name}", options[name])


def count(key: str, value: Any) -> int:
    """A non-negative integer."""
    try:
        integer = operator.index(value)
    except TypeError:
        raise ValueError(f"{key}={value!r} must be an integer") from None
    if integer < 0:
        raise ValueError(f"{key}={value} must be >= 0")
    return integer
