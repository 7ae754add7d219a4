"""Stopping in good order: SIGTERM, SIGHUP and Ctrl-C end a run after the step in flight."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

from jaxclip import standard_streams

logger = logging.getLogger("jaxclip")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """While open, turns SIGTERM, SIGINT and SIGHUP into a request to stop.

    A second SIGINT interrupts. A SIGHUP that is ignored (``nohup``) stays so.

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
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
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
        return _SIGNALS if jax.process_count() == 1 else _SIGNALS[1:]

    def say(self, text: str) -> None:
        """Print a line; what is told to nobody is as in :meth:`nobody_reads`."""
        standard_streams.say(text, self.nobody_reads)

    def nobody_reads(self, error: OSError) -> None:
        """Stop as for a signal if the reader of the output has ended (``| head``)."""
        if not isinstance(error, BrokenPipeError):
            logger.warning("standard output can't be written (%s); the run goes on", error.strerror)
            return
        if self.received is None:
            logger.warning("nobody reads the output any more: writing a checkpoint and stopping")
            self._stop(signal.SIGPIPE)

    def _stop(self, number: signal.Signals) -> None:
        self.received = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop(signal.Signals(number))
        # Ctrl-C also ends the `tee` that reads this. Python prints nothing in the midst of a print.
        with contextlib.suppress(RuntimeError):
            standard_streams.say(
                f"\n{signal.Signals(number).name}: finishing the step and writing a checkpoint"
                + (" (again to stop at once)" if number == signal.SIGINT else "")
            )
