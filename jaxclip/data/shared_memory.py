"""Memory that the training process and its data workers share: what each worker is doing, and slots
for finished rows.

It has no name: a descriptor is handed to the workers. So nothing is left behind however processes
end, and the size of ``/dev/shm``, small in containers, does not matter.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

from jaxclip.data.stages import CELL_BYTES, Board

_ALIGNMENT = 64
# Blocks of 32 MiB and more do not count, see mallopt(3): M_MMAP_THRESHOLD.
_LARGEST_COUNTED = 31 << 20


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things are: the workers' boards, then the slots.

    Attributes:
      workers: number of them.
      threads: of each.
      slots: number of them.
      rows: that fit into a slot.
      sides: of each view, by its key.
    """

    workers: int
    threads: int
    slots: int
    rows: int
    sides: Mapping[str, int]

    @property
    def board_bytes(self) -> int:
        """Of one worker."""
        return self.threads * CELL_BYTES

    @property
    def slot_bytes(self) -> int:
        """Of one slot."""
        return self.rows * sum(3 * side**2 for side in self.sides.values())

    @property
    def size(self) -> int:
        """Bytes of all."""
        return self.workers * self.board_bytes + self.slots * self.slot_bytes

    def board(self, memory: mmap.mmap, worker: int) -> Board:
        """What the threads of a worker are doing."""
        start = worker * self.board_bytes
        return Board(self.threads, memoryview(memory)[start : start + self.board_bytes])

    def views(self, memory: mmap.mmap, slot: int) -> dict[str, np.ndarray]:
        """uint8[rows, S, S, 3] of each view in a slot."""
        start = self.workers * self.board_bytes + slot * self.slot_bytes
        found = {}
        for key, side in self.sides.items():
            size = self.rows * 3 * side**2
            flat = np.frombuffer(memory, np.uint8, size, start)
            found[key] = flat.reshape(self.rows, side, side, 3)
            start += size
        return found


def empty_pictures(count: int, side: int) -> np.ndarray:
    """uint8[count, side, side, 3] that is not filled, where TensorFlow and JAX take it as it is.

    They copy arrays that do not begin at a multiple of 64 bytes.
    """
    size = count * 3 * side**2
    flat = np.empty(size + _ALIGNMENT, np.uint8)
    start = -flat.ctypes.data % _ALIGNMENT
    return flat[start : start + size].reshape(count, side, side, 3)


def keep_freed_memory() -> None:
    """Let the memory of one picture serve the next, as the C library of Linux does it.

    It gives memory back to the system as soon as twice the largest block freed so far lies unused,
    and has each page of it handed out anew: up to a fifth of the time of a picture of half a
    megabyte. So one of the largest blocks that it counts is freed, of which no page was ever used.
    """
    np.empty(_LARGEST_COUNTED, np.uint8)


def create(size: int) -> int:
    """The descriptor of so many bytes of new memory, all of them there.

    Raises:
      ValueError: there is not so much.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("jaxclip-data")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        # Else there would be a signal in place of an error, once it is written to.
        reserve = getattr(os, "posix_fallocate", None)
        if reserve is None:
            os.ftruncate(descriptor, size)
        else:
            reserve(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise ValueError(
            f"no room for {size / 2**20:.1f} MiB of memory shared with data workers "
            f"({error.strerror}); make data.workers or data.num_parallel_calls smaller, or set "
            "data.workers=0"
        ) from error
    return descriptor
