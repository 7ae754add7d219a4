"""Values of consecutive steps, made ahead by threads and handed out in order.

The threads belong to Python and not to TensorFlow. A tf.data pipeline that calls Python from
threads of its own (``map`` with parallel calls, ``prefetch``) can't be destroyed safely: its
destructor waits for these threads while it holds the interpreter's lock, and they wait for that
lock. A script that ended with such a pipeline open never ended. Threads of an executor are told to
stop when the interpreter ends, before anything is torn down.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

_LOG = logging.getLogger(__name__)

# Of so many things that are under way it is said what they are.
_MAX_NAMED = 3


class Closed(RuntimeError):
    """Work was given up because nobody wants its result any more."""


def interpreter_ends() -> bool:
    """Whether the main thread has ended, so that the process only waits for its other threads."""
    return not threading.main_thread().is_alive()


class Ahead:
    """Makes ``make(start)``, ``make(start + 1)``, … ahead of time.

    Args:
      make: step -> value; called from several threads.
      start: the first step.
      num_threads: values in work at once.
      depth: finished values that wait to be taken.
      patience: seconds after which it is logged what a value waits for; 0 = never.
      waits_for: says what is under way, the longest first.

    Attributes:
      error: what ``make`` raised for the value that was asked for last; None if it raised nothing.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        *,
        num_threads: int = 2,
        depth: int = 2,
        patience: float = 0,
        waits_for: Callable[[], list[str]] = list,
    ):
        self._make = make
        self._next = start
        self._num_waiting = num_threads + depth
        self._waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
        self._patience = patience
        self._waits_for = waits_for
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="jaxclip-batches")
        self.error: Exception | None = None

    def take(self, step: int) -> Any:
        """The value of a step; steps are taken one after the other, from ``start`` on.

        Raises:
          Closed: :meth:`close` was called.
          Exception: what ``make`` raised; the next step can be taken nevertheless.
        """
        self.error = None
        try:
            while len(self._waiting) < self._num_waiting:
                self._submit()
            due, future = self._waiting.popleft()
            assert due == step, (due, step)
            value = self._wait(step, future)
            self._submit()
        except Exception as error:
            self.error = error
            raise
        return value

    def _wait(self, step: int, future: Future[Any]) -> Any:
        """The value of a step; while it is long in coming, the log says what it waits for."""
        waited, patience = 0.0, self._patience
        while patience:
            try:
                return future.result(timeout=patience)
            except FutureTimeout:
                if future.done():  # it is the value's own error
                    break
                waited += patience
                patience = waited  # after twice the time again
                doing = "; ".join(self._waits_for()[:_MAX_NAMED]) or "nothing is under way"
                _LOG.warning("waited %.0f s for batch %d: %s", waited, step, doing)
        return future.result()

    def close(self) -> None:
        """Start nothing more, and drop what waits. What is in work is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()

    def _submit(self) -> None:
        try:
            self._waiting.append((self._next, self._pool.submit(self._make, self._next)))
        except RuntimeError as error:  # the pool, or the interpreter, is shut down
            raise Closed("the iterator is closed") from error
        self._next += 1
