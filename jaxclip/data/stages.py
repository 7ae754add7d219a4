"""What each thread that makes batches is doing, for those who wait for one."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, NamedTuple

READING, DECODING, IMAGE_OPS, TOKENIZING, MAKING = 1, 2, 3, 4, 5
NAMES = {
    READING: "reading record",
    DECODING: "decoding record",
    IMAGE_OPS: "image ops on record",
    TOKENIZING: "tokenizing batch",
    MAKING: "making the columns of batch",
}
# Three numbers of 64 bits for each thread: stage (0 = none), record or batch, when it began.
CELL_BYTES = 24


class Activity(NamedTuple):
    """What a thread is doing.

    Attributes:
      stage: a key of :data:`NAMES`.
      number: of the record, or of the batch.
      seconds: for how long by now.
    """

    stage: int
    number: int
    seconds: float


class Board:
    """Where threads note what they are doing. Noting takes a fifth of a microsecond.

    Args:
      num_threads: threads that may note something; more of them share places.
      memory: writable, of ``num_threads * CELL_BYTES`` bytes, such as another process can read; by
        default own memory.
    """

    def __init__(self, num_threads: int, memory: Any = None):
        size = num_threads * CELL_BYTES
        self._cells = memoryview(bytearray(size) if memory is None else memory)[:size].cast("q")
        self._num_threads = num_threads
        self._numbers = itertools.count()
        self._local = threading.local()

    def note(self, stage: int, number: int) -> None:
        """This thread begins a stage with a record or batch."""
        cells, first = self._cells, self._place()
        cells[first + 1] = number
        cells[first + 2] = time.monotonic_ns()
        cells[first] = stage

    def clear(self) -> None:
        """This thread is doing nothing."""
        self._cells[self._place()] = 0

    def reset(self) -> None:
        """Nobody does anything."""
        for place in range(0, len(self._cells), 3):
            self._cells[place] = 0

    def busy(self) -> list[Activity]:
        """What is being done, the longest first."""
        now, cells = time.monotonic_ns(), self._cells.tolist()
        found = [
            Activity(stage, number, (now - began) / 1e9)
            for stage, number, began in zip(cells[::3], cells[1::3], cells[2::3], strict=True)
            if stage in NAMES
        ]
        return sorted(found, key=lambda each: -each.seconds)

    def in_words(self) -> list[str]:
        """What is being done, the longest first."""
        return [
            f"{NAMES[each.stage]} {each.number} for {each.seconds:.0f} s" for each in self.busy()
        ]

    def _place(self) -> int:
        try:
            return self._local.place
        except AttributeError:
            self._local.place = 3 * (next(self._numbers) % self._num_threads)
            return self._local.place
