"""Records that can be used, and those of them that are kept decoded."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxclip.data.image_op import Size
from jaxclip.data.record import Record

_RECORD_OVERHEAD = 400  # bytes of Python objects around a cached record


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A record that can be used.

    Attributes:
      index: its number.
      record: the record, without image bytes and meta.
      pixels: the decoded image, uint8[H, W, 3]; None if no view wants it, and without rows once
        the views are made, unless it is wanted itself.
      size: (width, height) of the image as it is stored.
      extras: what fields keep of it.
      shrink: how many times larger than ``pixels`` that is.
    """

    index: int
    record: Record
    pixels: np.ndarray | None
    size: Size
    extras: Mapping[str, Any]
    shrink: int = 1


class DecodedCache:
    """Decoded records within a memory limit; those that come first stay.

    Images that already have the final shape, ``side`` x ``side``, lie in one array, if that fits
    for the whole split, so that a batch of them is one indexing operation.
    """

    def __init__(self, num_records: int, side: int, limit: int):
        self._left = limit
        self._shape = (side, side, 3)
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()
        fits = 0 < num_records * int(np.prod(self._shape)) <= limit
        # Memory that is never written takes no space: np.empty only reserves it.
        self._block = np.empty((num_records, *self._shape), np.uint8) if fits else None
        self._in_block = np.zeros(num_records if fits else 0, bool)

    def has_room(self, size: Size) -> bool:
        """Whether a picture of (width, height) may be kept."""
        return 3 * size[0] * size[1] < self._left

    def get(self, index: int) -> Loaded | None:
        return self._loaded.get(index)

    def images(self, indices: np.ndarray) -> np.ndarray | None:
        """uint8[n, H, W, 3] if all of them are in the block."""
        if self._block is None or not self._in_block[indices].all():
            return None
        return self._block[indices]

    def put(self, loaded: Loaded) -> Loaded:
        """Keep a record if there is room; returns it, with its pixels where they are kept."""
        pixels = loaded.pixels
        size = _RECORD_OVERHEAD + (0 if pixels is None else pixels.nbytes)
        size += sum(len(text) + 60 for text in loaded.record.texts)
        size += sum(_size_of(value) for value in loaded.extras.values())
        with self._lock:
            if size > self._left or loaded.index in self._loaded:
                return loaded
            self._left -= size
            if self._block is not None and pixels is not None and pixels.shape == self._shape:
                self._block[loaded.index] = pixels
                loaded = dataclasses.replace(loaded, pixels=self._block[loaded.index])
                self._loaded[loaded.index] = loaded
                self._in_block[loaded.index] = True
            else:
                self._loaded[loaded.index] = loaded
        return loaded


def _size_of(extra: Any) -> int:
    """About the bytes of what a field keeps."""
    if isinstance(extra, np.ndarray):
        return extra.nbytes + 200
    return 100 + (sum(len(text) + 60 for text in extra) if isinstance(extra, tuple) else 0)
