"""A file in a bucket as Python's file objects are, for libraries that want one (pyarrow)."""

from __future__ import annotations

import io
import os

from jaxclip.data import remote

# Stores give ranges from the start or from the end of a file, but do not say how long it is. So
# what is as far from this as from the end is read from the end.
_END = 1 << 50


class RemoteFile(io.RawIOBase):
    """A file to read in ranges; where it ends is not known to those who read it.

    Positions from the start, and those from the end (``seek(-8, 2)``) are both right; a difference
    of one of each is not.

    Args:
      url: of the file.
    """

    def __init__(self, url: str):
        super().__init__()
        self._url = url
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        """The end, for positions before it."""
        return _END

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: _END}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        first = self._position
        last = _END if size is None or size < 0 else min(_END, first + size)
        if first >= last:
            return b""
        if first >= _END // 2:
            data = remote.read_slice(self._url, first - _END, None)
            # A file that is shorter than that seems to begin with zeros.
            data = data.rjust(_END - first, b"\0")[: last - first]
        else:
            data = remote.read_slice(self._url, first, None if last == _END else last)
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
