"""Stopping in good order: SIGTERM and Ctrl-C end a run after the step in flight."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While open, turns SIGTERM and SIGINT into a request to stop; a second SIGINT interrupts.

    With several processes all stop at the same step, whichever of them was told to: JAX's
    preemption service (on by default with ``jax.distributed``) listens for SIGTERM and spreads the
    notice. SIGINT is passed on to it as SIGTERM.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        # Python delivers signals to the main thread only, and only it may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in self._handled():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def requested(self, step: int) -> bool:
        """Whether every process should stop after ``step``; called once a step by all of them."""
        if jax.process_count() == 1:
            return self.received is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.received = self.received or signal.SIGTERM
            return True
        return False

    def _handled(self) -> tuple[signal.Signals, ...]:
        # JAX's own SIGTERM handler feeds the preemption service: leave that one in place.
        return _SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        print(
            f"\n{self.received.name}: finishing the step and writing a checkpoint"
            + (" (again to stop at once)" if number == signal.SIGINT else ""),
            flush=True,
        )
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
