"""Where a run's numbers go: one writer a file, found by its name in ``config.writers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.registry import Registry, check_numbers
from jaxclip.train.writers.base import MetricsError as MetricsError
from jaxclip.train.writers.base import Run as Run
from jaxclip.train.writers.base import Writer as Writer

WRITERS = Registry("metric writer", __name__, exclude=("base",))

# The report is made of what this one writes; it is always on, and first.
ALWAYS = "jsonl"
DEFAULT: tuple[str, ...] = (ALWAYS, "tensorboard")


def from_config(given: str | Sequence[str | Mapping[str, Any]]) -> list[Writer]:
    """The writers of ``config.writers``, not yet opened.

    Args:
      given: names, or dicts with a ``name`` and options, such as ``{"name": "wandb", "project":
        "clip"}``.

    Raises:
      ValueError: an unknown writer or option (naming the nearest), one named twice, or one whose
        library is not installed.
    """
    entries: list[Any] = [given] if isinstance(given, str) else list(given)
    for entry in entries:
        if not isinstance(entry, (str, Mapping)):
            raise ValueError(
                f"config.writers has {entry!r}; a writer is a name, or a dict with one"
            )
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in entries]
    if ALWAYS not in names:
        entries, names = [ALWAYS, *entries], [ALWAYS, *names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"config.writers names {name!r} twice")
    entries.insert(0, entries.pop(names.index(ALWAYS)))
    names.insert(0, names.pop(names.index(ALWAYS)))
    writers: list[Writer] = [WRITERS.build(entry) for entry in entries]
    for name, writer in zip(names, writers, strict=True):
        check_numbers(writer, f"metric writer {name!r}")
        writer.check()
    return writers
