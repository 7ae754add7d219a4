"""Data workers: processes that read, decode and augment for the training process.

They keep the interpreter's lock free for training. The parent says which record stands in which row
and what the seed is, so a batch is the same to the bit however many workers there are and whatever
becomes of them: one that ends is replaced, and its rows are made again. A record that is in work
when a worker ends for the second time is counted as bad.

One thread of the parent (:class:`.dispatcher.Dispatcher`) talks to all workers, through sockets,
with the messages of :mod:`.wire`:

- to a worker: ``{"config", "spec", "seed", "layout", "worker"}`` first, then for each task
  ``{"task", "slot", "careful", "lethal"}`` with the arrays places and record numbers;
- from it: ``{"ready"}`` or ``{"failed"}``, then ``{"task", "rows"}`` or ``{"task", "error"}``, and
  ``{"log"}``.
"""

from __future__ import annotations

import builtins
import dataclasses
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxclip.data import wire
from jaxclip.data.ahead import Closed
from jaxclip.data.decoded_cache import Loaded
from jaxclip.data.dispatcher import Dispatcher, Job, Task
from jaxclip.data.loader import Replacement, num_cpus
from jaxclip.data.record import BadRecord
from jaxclip.data.record_stats import MAX_ATTEMPTS, RecordStats
from jaxclip.data.shared_memory import Layout, empty_pictures
from jaxclip.data.stages import Board
from jaxclip.fields import BatchSpec

# A task's rows are few enough for work to be spread evenly, and enough to be worth a message.
_SLOT_BYTES, _MAX_ROWS = 1 << 21, 32
# Seconds between looks at whether the rows are still wanted.
_PATIENCE = 0.2


class WorkerReader:
    """Reads with data workers, see :class:`.reading.Reader`.

    Args:
      config: data config, complete.
      spec: what a batch holds.
      seed: of the run.
      sides: of the views, by key.
      rows: of a batch that are made here.
      what: the split's name in log messages.

    Raises:
      ValueError: no memory for it, or a system that has no such processes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        spec: BatchSpec,
        seed: int,
        sides: Mapping[str, int],
        rows: int,
        what: str,
    ):
        workers = config["workers"]
        threads = max(1, -(-(config["num_parallel_calls"] or num_cpus()) // workers))
        row_bytes = sum(3 * side**2 for side in sides.values())
        fair = -(-rows // (2 * workers * threads))
        in_slot = max(1, min(_MAX_ROWS, _SLOT_BYTES // max(1, row_bytes), fair))
        # As many as are in work or wait to be, and as many that wait to be fetched.
        slots = 2 * workers * (threads + 1)
        self._layout = Layout(workers, threads, slots, in_slot, dict(sides))
        own = {
            "cache_decoded_mb": config["cache_decoded_mb"] / workers,
            "num_parallel_calls": 1,
            "workers": 0,
        }
        setup = {
            "config": {**config, **own},
            "spec": {
                key: [type(field).__name__, dataclasses.asdict(field)]
                for key, field in spec.items()
            },
            "seed": seed,
        }
        self.stats = RecordStats(what)
        self.board = Board(8)
        self._dispatcher = Dispatcher(setup, self._layout)
        # Work can't be given to it any more once the interpreter shuts down: the one public sign.
        self._canary = ThreadPoolExecutor(1, thread_name_prefix="jaxclip-canary")

    def load(
        self, places: np.ndarray, indices: np.ndarray, replacement: Replacement
    ) -> tuple[dict[str, np.ndarray], list[Loaded]]:
        """See :meth:`.reading.Reader.load`."""
        count = len(places)
        self.stats.add_drawn(count)
        views = {
            key: empty_pictures(count, side)  # each row is filled, or nothing is returned
            for key, side in self._layout.sides.items()
        }
        loaded: dict[int, Loaded] = {}
        tries = _Tries(indices, replacement, self.stats)
        wanted = list(range(count))
        for row in wanted:
            tries.settle(row)
        while wanted:
            rejected = []
            for task in self._finished(wanted, places, tries.indices):
                for row, packed in zip(task.rows, task.outcomes, strict=True):
                    outcome = wire.unpack_outcome(packed, task.arrays)
                    if isinstance(outcome, Loaded):
                        loaded[row] = outcome
                    else:
                        tries.reject(row, outcome)
                        rejected.append(row)
                slot = self._dispatcher.views[task.slot]
                for key, view in views.items():
                    view[_as_slice(task.rows)] = slot[key][: len(task.rows)]
            wanted = rejected
        return views, [loaded[row] for row in range(count)]

    def _finished(
        self, rows: Sequence[int], places: np.ndarray, indices: np.ndarray
    ) -> Iterator[Task]:
        """Tasks for rows, as they are done; the slot of each is its until the next is asked for."""
        job, size = Job(), self._layout.rows
        pieces = [list(rows[first : first + size]) for first in range(0, len(rows), size)]
        tasks = [Task(job, piece, places[piece], indices[piece]) for piece in pieces]
        self._check()
        self._dispatcher.submit(tasks)
        try:
            for _ in tasks:
                task = self._next(job)
                try:
                    if task.error is not None:
                        raise _error_of(*task.error)
                    yield task
                finally:
                    self._dispatcher.release(task.slot)
        finally:
            self._dispatcher.abandon(job)

    def _next(self, job: Job) -> Task:
        while True:
            try:
                return job.done.get(timeout=_PATIENCE)
            except queue.Empty:
                self._check()

    def _check(self) -> None:
        """Raise what keeps rows from being made, if there is anything."""
        if self._dispatcher.failure is not None:
            raise self._dispatcher.failure
        try:
            self._canary.submit(int)
        except RuntimeError as error:
            raise Closed("reading was given up") from error

    def busy(self) -> list[str]:
        """See :meth:`.reading.Reader.busy`."""
        return self.board.in_words() + self._dispatcher.in_words()

    def close(self) -> None:
        """See :meth:`.reading.Reader.close`."""
        self._canary.shutdown(wait=False)
        self._dispatcher.close()


class _Tries:
    """Which record each row of a batch gets, as some turn out to be bad.

    Attributes:
      indices: int64[n], the record of each row.
    """

    def __init__(self, indices: np.ndarray, replacement: Replacement, stats: RecordStats):
        self.indices = np.array(indices, np.int64)
        self._replacement = replacement
        self._stats = stats
        self._attempts = [0] * len(self.indices)

    def settle(self, row: int) -> None:
        """Pass over records that are known to be bad."""
        while (bad := self._stats.known(int(self.indices[row]))) is not None:
            self._stats.add(int(self.indices[row]), bad)
            self._advance(row, bad)

    def reject(self, row: int, bad: BadRecord) -> None:
        """The row's record is bad: the next one that is not known to be so takes its place."""
        self._stats.add(int(self.indices[row]), bad)
        self._advance(row, bad)
        self.settle(row)

    def _advance(self, row: int, bad: BadRecord) -> None:
        if self._attempts[row] == MAX_ATTEMPTS:
            raise self._stats.hopeless(bad)
        self.indices[row] = self._replacement(row, self._attempts[row])
        self._attempts[row] += 1


def _as_slice(rows: Sequence[int]) -> Any:
    """Rows as a slice if they are neighbours: copying is faster, and without the lock."""
    whole = rows[-1] - rows[0] + 1 == len(rows)
    return slice(rows[0], rows[-1] + 1) if whole else list(rows)


def _error_of(name: str, text: str) -> Exception:
    """An exception that a worker met."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, (OSError, ValueError, RuntimeError)):
        # Errors of Unicode can't be made of a text alone; they are errors of value.
        return ValueError(text) if issubclass(kind, UnicodeError) else kind(text)
    return RuntimeError(f"in a data worker: {name}: {text}")
