"""Records of an ArrayRecord file out of ranges of its bytes, so that it may be in a bucket.

The library that writes such files reads them from disks only. An ArrayRecord file is a Riegeli file
(``doc/riegeli_records_file_format.md`` of github.com/google/riegeli): chunks of records,
interrupted by a header of 24 bytes at each multiple of 64 KiB. Its last 64 KiB say where the footer
is, and the footer where the chunks are. Read are chunks of Riegeli's simple kind, which is what
ArrayRecord writes by default; checksums (HighwayHash) are not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<5Q")  # hash, size of data, hash of data, kind and count, whole size
_MAGIC = 0x71930E704FDAE05E
_SIMPLE = ord("r")
_CODECS = {ord("b"): "brotli", ord("z"): "zstd", ord("s"): "snappy"}
_LARGEST_CHUNK = 1 << 40

# (first byte, one past the last; None for the end) -> bytes. A negative first byte counts from the
# end, and then there is no last one.
Read = Callable[[int, int | None], bytes]


class Index(NamedTuple):
    """Where the records of a file are.

    Attributes:
      offsets: int64[chunks + 1], of chunks, and where the last one ends at the latest.
      starts: int64[chunks + 1], number of the first record of each chunk, and of all records.
    """

    offsets: np.ndarray
    starts: np.ndarray


def read_index(read: Read) -> Index:
    """The index of a file.

    Raises:
      ValueError: it is no ArrayRecord file or is damaged.
    """
    end = _Stream(read(-_BLOCK, None), 0).chunk()
    postscript = _numbers(end[0]) if end else {}
    if postscript.get(2) != _MAGIC or 1 not in postscript:
        raise ValueError("it has no end of an ArrayRecord file")
    footer = postscript[1]
    stream = _Stream(read(footer, None), footer)
    records = list(stream.records())
    about = _numbers(_message_in(records[0])) if records else {}
    count = about.get(2, 0)
    # What is left are the records of the end.
    chunks = [_numbers(record) for record in records[1 : count + 1]]
    if len(chunks) != count:
        raise ValueError(f"its footer names {len(chunks)} of {count} chunks")
    offsets = np.array([*(chunk.get(1, 0) for chunk in chunks), footer], np.int64)
    starts = np.cumsum([0, *(chunk.get(3, 0) for chunk in chunks)], dtype=np.int64)
    return Index(offsets, starts)


def read_record(read: Read, index: Index, number: int) -> bytes:
    """Bytes of a record.

    Raises:
      ValueError: the chunk that it is in is damaged.
    """
    chunk = int(np.searchsorted(index.starts, number, side="right")) - 1
    first, last = int(index.offsets[chunk]), int(index.offsets[chunk + 1])
    records = _Stream(read(first, last), first).chunk()
    if len(records) != index.starts[chunk + 1] - index.starts[chunk]:
        raise ValueError(f"its chunk {chunk} holds {len(records)} records")
    return records[number - int(index.starts[chunk])]


class _Stream:
    """The bytes of a part of a file without the headers of blocks."""

    def __init__(self, data: bytes, offset: int):
        pieces, position, end = [], 0, len(data)
        while position < end:
            into = (offset + position) % _BLOCK
            start = position + max(0, _BLOCK_HEADER - into)
            stop = position + _BLOCK - into
            pieces.append(data[start:stop])
            position = stop
        self._data = b"".join(pieces)
        self._position = 0

    def chunk(self) -> list[bytes]:
        """The records of the next chunk."""
        header = self._take(_CHUNK_HEADER.size)
        _, size, _, kind_and_count, _ = _CHUNK_HEADER.unpack(header)
        data = self._take(size)
        kind, count = kind_and_count & 0xFF, kind_and_count >> 8
        if kind != _SIMPLE:
            if count:
                raise ValueError(f"chunks of kind {chr(kind)!r} are not read (transposed records)")
            return []
        return _records(data, count)

    def records(self) -> Iterator[bytes]:
        """The records of all chunks that follow."""
        while self._position + _CHUNK_HEADER.size <= len(self._data):
            yield from self.chunk()

    def _take(self, size: int) -> bytes:
        if size > _LARGEST_CHUNK or self._position + size > len(self._data):
            raise ValueError("a chunk ends beyond the end of the file")
        self._position += size
        return self._data[self._position - size : self._position]


def _records(data: bytes, count: int) -> list[bytes]:
    """The records in the data of a simple chunk."""
    if not data:
        raise ValueError("a chunk is empty")
    codec = data[0]
    sizes_size, position = _varint(data, 1)
    sizes_data = _plain(data[position : position + sizes_size], codec)
    values = _plain(data[position + sizes_size :], codec)
    records, position, start = [], 0, 0
    for _ in range(count):
        size, position = _varint(sizes_data, position)
        records.append(values[start : start + size])
        start += size
    if start != len(values):
        raise ValueError("the records of a chunk are not as long as it says")
    return records


def _plain(data: bytes, codec: int) -> bytes:
    if codec == 0:
        return data
    if codec not in _CODECS:
        raise ValueError(f"compression {chr(codec)!r} of a chunk is unknown")
    import pyarrow

    size, position = _varint(data, 0)
    if size > _LARGEST_CHUNK:
        raise ValueError(f"a chunk of {size} bytes")
    if size == 0:
        return b""
    try:
        found = pyarrow.decompress(data[position:], size, codec=_CODECS[codec], asbytes=True)
    except OSError as error:
        raise ValueError(f"a chunk can't be decompressed: {error}") from error
    return bytes(found)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("a number in a chunk has no end")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _items(message: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer message: numbers and bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        value, position = _varint(message, position)
        if key & 7 == 2:
            yield key >> 3, message[position : position + value]
            position += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise ValueError("the footer holds what is not known")


def _numbers(message: bytes) -> dict[int, int]:
    """Numbers of a message by their fields."""
    return {number: value for number, value in _items(message) if isinstance(value, int)}


def _message_in(message: bytes) -> bytes:
    """The message within a message."""
    return next((value for _, value in _items(message) if isinstance(value, bytes)), b"")
