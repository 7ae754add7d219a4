"""The progress bar of an import."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

_EVERY_SECONDS = 0.1


class Progress:
    """A bar on stderr: share of the source, records, records a second, what was skipped.

    Args:
      show: whether there is a bar at all.
    """

    def __init__(self, show: bool):
        self._bar: Any = None
        self._task: Any = None
        self._shown = self._began = time.monotonic()
        self._first: int | None = None
        if show:
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("importing"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[text]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=None, text="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, fraction: float | None, records: int, skipped: int) -> None:
        """Show where the import stands, a few times a second."""
        now = time.monotonic()
        if self._bar is None or now - self._shown < _EVERY_SECONDS:
            return
        self._shown = now
        if self._first is None:  # what an earlier run did is no speed of this one
            self._first, self._began = records, now
        rate = (records - self._first) / max(now - self._began, 1e-3)
        self._bar.update(
            self._task,
            total=None if fraction is None else 1.0,
            completed=fraction or 0.0,
            text=f"{records:,} records ({rate:,.0f}/s), {skipped:,} skipped",
        )
