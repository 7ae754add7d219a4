"""A trace of some steps for TensorBoard's profiler: ``config.profile``."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

FOLDER = "profile"


class Profile:
    """Records ``num_steps`` steps from ``start_step`` on into ``workdir/profile`` (process 0)."""

    def __init__(self, config: Mapping[str, int], workdir: pathlib.Path):
        """
        Args:
          config: ``start_step``, the first step recorded, and ``num_steps``, 0 for none. A run that
            goes on after ``start_step`` records what is left of them.
          workdir: the run's folder.
        """
        first = config["start_step"]
        self._steps = range(first, first + config["num_steps"])
        self._folder = workdir / FOLDER
        self._running = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def before(self, step: int, previous: Any) -> None:
        """Start or stop before a step; ``previous``: arrays of the step before, waited for then."""
        if jax.process_index() != 0 or (step in self._steps) == self._running:
            return
        jax.block_until_ready(previous)
        if self._running:
            self._stop()
        else:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
