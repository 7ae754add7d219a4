"""What a metric writer is."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from jaxclip.errors import RunError


class MetricsError(RunError):
    """Metrics can't be written; the message names the path or service and the way out."""


class Run(NamedTuple):
    """What a writer may know of the run.

    Attributes:
      workdir: the run's folder; it exists.
      resume_step: the step the run goes on from (0 for a new one); None: it is not known.
      config: resolved configuration; may be empty.
    """

    workdir: pathlib.Path
    resume_step: int | None
    config: Mapping[str, Any]


class Writer:
    """Base of all writers: dataclasses whose fields are their options.

    A new one is a file of this package with a subclass named after it, and a test file. Only
    process 0 opens writers.

    Attributes:
      library: module that must be importable, empty for none; ``package`` is how pip calls it.
      may_fail: whether a run goes on without it when it fails in the middle, as that of a service
        elsewhere may.
    """

    library: ClassVar[str] = ""
    package: ClassVar[str] = ""
    may_fail: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse a missing library or a wrong option, before the run starts.

        Raises:
          ValueError: with the way out.
        """
        if self.library and importlib.util.find_spec(self.library) is None:
            name = type(self).__name__.lower()
            raise ValueError(
                f"config.writers: {name!r} needs the library {self.library!r}, which is not "
                f"installed; pip install '{self.package or self.library}', or take it out"
            )

    def open(self, run: Run) -> None:
        """Begin, or go on after ``run.resume_step``: what came later counts no more."""
        raise NotImplementedError

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Record the values of a step.

        Args:
          step: updates done; a step may come several times, with other names.
          time: seconds since 1970.
          values: by name; may be NaN or infinite.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Put everything where it goes."""

    def close(self) -> None:
        """Flush and end."""
