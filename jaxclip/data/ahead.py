"""Values of consecutive steps, made ahead by threads and handed out in order.

The threads belong to Python and not to TensorFlow. A tf.data pipeline that calls Python from
threads of its own (``map`` with parallel calls, ``prefetch``) can't be destroyed safely: its
destructor waits for these threads while it holds the interpreter's lock, and they wait for that
lock. A script that ended with such a pipeline open never ended. Threads of an executor are told to
stop when the interpreter ends, before anything is torn down.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


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

    Attributes:
      error: what ``make`` raised for the value that was asked for last; None if it raised nothing.
    """

    def __init__(
        self, make: Callable[[int], Any], start: int, *, num_threads: int = 2, depth: int = 2
    ):
        self._make = make
        self._next = start
        self._num_waiting = num_threads + depth
        self._waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
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
            value = future.result()
            self._submit()
        except Exception as error:
            self.error = error
            raise
        return value

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
