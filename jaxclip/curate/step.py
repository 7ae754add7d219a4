"""What a step of a curation is, and their registry.

A step is a frozen dataclass in a file of its own (:mod:`jaxclip.curate.steps`), whose fields are
its options. It says which columns it wants and makes and why it drops records, and does its work in
passes over the records that are left (:class:`jaxclip.curate.flow.Flow`). What it gives to a pass
are functions of arrays (methods, :func:`functools.partial`), since workers elsewhere carry them
out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from jaxclip.data.importer.items import files_stamp
from jaxclip.registry import Registry, check_numbers, hint

if TYPE_CHECKING:
    from jaxclip.curate.flow import Flow

STEPS = Registry("curation step", "jaxclip.curate.steps")


@dataclasses.dataclass(frozen=True)
class Step:
    """Base of all steps.

    Attributes:
      reasons: why it drops records; verdicts are numbers into it, counted from 1 (0: it stays).
    """

    reasons: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """The name of its file."""
        return type(self).__module__.rpartition(".")[2]

    def wants(self) -> tuple[str, ...]:
        """Columns that an earlier step must have made."""
        return ()

    def makes(self) -> tuple[str, ...]:
        """Columns that it makes for later steps."""
        return ()

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError for options that can't be."""

    def stamp(self) -> Any:
        """What changes if files that it reads change: JSON, part of the identity of its results."""
        return None

    def identity(self) -> list[Any]:
        """What its results depend on, but for the records: which step it is, options, stamp."""
        kind = type(self)
        return [f"{kind.__module__}:{kind.__qualname__}", self.options(), self.stamp()]

    def options(self) -> dict[str, Any]:
        """Its options as JSON; what has no bound has none there."""
        found = json.loads(json.dumps(dataclasses.asdict(self)))
        return {k: None if v in (math.inf, -math.inf) else v for k, v in found.items()}

    def run(self, flow: Flow) -> None:
        """Do its work; the last pass is :meth:`~jaxclip.curate.flow.Flow.decide`, if it drops."""
        raise NotImplementedError


def build(config: Any, where: str) -> Step:
    """A step of its section of a configuration.

    Args:
      config: ``{"name": "captions", "min_words": 3}``, or the name alone.
      where: for errors, such as ``"steps[2]"``.

    Raises:
      ValueError, FileNotFoundError: an unknown step or option, or one that can't be.
    """
    try:
        step = STEPS.build(_as_wanted(config))
        if not isinstance(step, Step):
            raise ValueError(f"{type(step).__name__} is no jaxclip.curate.step.Step")
        check_numbers(step, f"step {step.name!r}")
        _check_lists(step)
        step.check()
    except (ValueError, FileNotFoundError, TypeError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{where}: {error}") from error
    return step


def _as_wanted(config: Any) -> Any:
    """What a command line can't say otherwise: ``"en,de"`` and ``1`` are lists where one is wanted,
    and None (which ``none`` is read as) the word where a word is."""
    if not isinstance(config, Mapping) or "name" not in config:
        return config
    thing = STEPS.get(config["name"])
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    kinds = {field.name: type(field.default) for field in fields}
    result = dict(config)
    for key, value in config.items():
        if kinds.get(key) is tuple and isinstance(value, str):
            result[key] = [part.strip() for part in value.split(",") if part.strip()]
        elif kinds.get(key) is tuple and isinstance(value, int | float | bool):
            result[key] = [str(value)]
        elif kinds.get(key) is str and value is None:
            result[key] = "none"
    return result


def _check_lists(step: Step) -> None:
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if isinstance(field.default, tuple) and not isinstance(value, (list, tuple)):
            raise ValueError(f"{field.name}={value!r} of step {step.name!r} must be a list")


def check_choice(option: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise ValueError unless an option is one of some words."""
    if value not in known:
        raise ValueError(f"{option}={value!r}{hint(str(value), known)}")


def check_range(option: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless a number is in [low, high]."""
    if not low <= value <= high:
        upper = f" and at most {high:g}" if high < float("inf") else ""
        raise ValueError(f"{option}={value!r} must be at least {low:g}{upper}")


def check_order(least: str, low: float, most: str, high: float) -> None:
    """Raise ValueError for bounds that nothing is between."""
    if low > high:
        raise ValueError(f"{least}={low!r} is more than {most}={high!r}: nothing would be left")


def check_one_vector(option: str, column: str) -> None:
    """Raise ValueError for a column of captions' vectors, where one for each record is wanted."""
    if column.startswith("text"):
        raise ValueError(f"{option}={column!r} must be a column with one vector a record")


def path_stamp(path: str | os.PathLike[str]) -> str:
    """Changes where a file does, or any file of a folder."""
    place = pathlib.Path(path).expanduser()
    inside = sorted(each for each in place.rglob("*") if each.is_file())
    return files_stamp(inside if place.is_dir() else [place])
