"""Flax's ``.msgpack`` files: nested dicts of arrays, as ``flax.serialization`` writes them.

The headers alone are read here; the numbers stay in the mapped file. Of MessagePack's values
(https://github.com/msgpack/msgpack/blob/master/spec.md) maps and arrays of Flax's extension are
kept, and everything else is passed over.
"""

from __future__ import annotations

import mmap
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxclip.weights.files._base import LARGEST_RANK, FileError, Tensor, Tensors, checked_size

_DEEPEST = 64
# Values of a file, over all its levels.
_MOST = 200_000
_LONGEST_NAME = 4096
# Flax's extension types of an array and of a scalar of NumPy.
_ARRAYS = (1, 3)
# How it keeps an array of more than 2^30 bytes.
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(bool)}
# First bytes: the kind of value, and how many bytes tell its length.
_SIZED = {
    0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4),
    0xC7: ("extension", 1), 0xC8: ("extension", 2), 0xC9: ("extension", 4),
    0xD9: ("text", 1), 0xDA: ("text", 2), 0xDB: ("text", 4),
    0xDC: ("list", 2), 0xDD: ("list", 4), 0xDE: ("map", 2), 0xDF: ("map", 4),
}  # fmt: skip
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8,
    0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip


class _Head(NamedTuple):
    """The first bytes of a value.

    Attributes:
      kind: ``map``, ``list``, ``text``, ``bytes``, ``extension`` or ``number``.
      size: entries of a map or list, bytes of anything else.
      code: of an extension its type, of a number its first byte.
    """

    kind: str
    size: int
    code: int = 0


class _Array(NamedTuple):
    """Where the numbers of an array are."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


class _Reader:
    """Walks through a mapped file; ``at`` is the place of the next byte."""

    def __init__(self, data: mmap.mmap, path: pathlib.Path):
        self.data, self.path, self.at, self.seen = data, path, 0, 0

    def take(self, count: int) -> bytes:
        start = self.at
        self.skip(count)
        return self.data[start : self.at]

    def skip(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise FileError(f"{self.path} ends within a value at byte {self.at}")
        self.at += count

    def head(self) -> _Head:
        self.seen += 1
        if self.seen > _MOST:
            raise FileError(f"{self.path} holds more than {_MOST} values")
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return _Head("number", 0, first)
        if first < 0xC0:
            kind, bits = ("map", 0xF) if first < 0x90 else ("list", 0xF)
            kind, bits = ("text", 0x1F) if first >= 0xA0 else (kind, bits)
            return _Head(kind, first & bits)
        if first in _SIZED:
            kind, width = _SIZED[first]
            size = int.from_bytes(self.take(width), "big")
            return _Head(kind, size, self.take(1)[0] if kind == "extension" else 0)
        if 0xD4 <= first <= 0xD8:
            return _Head("extension", 1 << (first - 0xD4), self.take(1)[0])
        if first in _FIXED:
            return _Head("number", _FIXED[first], first)
        raise FileError(f"{self.path} has a byte at {self.at - 1} that begins no value")

    def value(self, depth: int = 0) -> Any:
        """A dict, an :class:`_Array`, or None for what is passed over."""
        if depth > _DEEPEST:
            raise FileError(f"{self.path} is nested more than {_DEEPEST} deep")
        head = self.head()
        if head.kind == "map":
            return dict(self._items(head.size, depth))
        if head.kind == "list":
            for _ in range(head.size):
                self.value(depth + 1)
            return None
        end = self.at + head.size
        found = self._array() if head.kind == "extension" and head.code in _ARRAYS else None
        if found is not None and self.at != end:
            raise FileError(f"{self.path} has an array that is no array before byte {end}")
        if head.kind == "number" and head.code <= 0x7F:
            return head.code
        if head.kind == "number" and head.code in (0xCC, 0xCD, 0xCE, 0xCF):
            return int.from_bytes(self.take(head.size), "big")
        self.skip(end - self.at)
        return found

    def _items(self, count: int, depth: int) -> Iterator[tuple[str, Any]]:
        for _ in range(count):
            key = self._text()
            yield key, self.value(depth + 1)

    def _text(self) -> str:
        head = self.head()
        if head.kind not in ("text", "bytes") or head.size > _LONGEST_NAME:
            raise FileError(f"{self.path} has a key that is no name at byte {self.at}")
        return self.take(head.size).decode("utf-8", "replace")

    def _array(self) -> _Array:
        """``[shape, dtype, numbers]`` of Flax's extension."""
        what = f"{self.path}: the array at byte {self.at}"
        outer, inner = self.head(), self.head()
        if (outer.kind, outer.size) != ("list", 3) or inner.kind != "list":
            raise FileError(f"{what} is none")
        if inner.size > LARGEST_RANK:
            raise FileError(f"{what} has {inner.size} dimensions")
        shape = tuple(self.value() for _ in range(inner.size))
        name = self._text()
        if name not in _DTYPES:
            raise FileError(f"{what} is of dtype {name[:40]!r}, which is not read")
        numbers = self.head()
        if numbers.kind != "bytes":
            raise FileError(f"{what} has no numbers")
        size = checked_size(shape, _DTYPES[name], numbers.size, what)
        if size != numbers.size:
            raise FileError(f"{what} of shape {list(shape)} has {numbers.size} bytes, not {size}")
        offset = self.at
        self.skip(numbers.size)
        return _Array(shape, _DTYPES[name], offset)


def open_msgpack(path: pathlib.Path) -> Tensors:
    """Open what ``flax.serialization.msgpack_serialize`` wrote; names are joined with dots.

    Raises:
      FileError: damaged, or another kind of file.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise FileError(f"{path} is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data, path)
    content = reader.value()
    if not isinstance(content, dict) or reader.at != len(data):
        raise FileError(f"{path} is no dict of arrays in MessagePack, as Flax writes it")
    tensors = dict(_flatten(content, "", data, path))
    if not tensors:
        raise FileError(f"{path} holds no arrays")
    return Tensors(path, tensors)


def _flatten(
    content: Any, name: str, data: mmap.mmap, path: pathlib.Path
) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, _Array):
        yield name, Tensor(content.shape, content.dtype, lambda: _read(content, data))
    elif isinstance(content, dict) and _CHUNKED in content:
        yield name, _chunked(content, data, f"{path}: {name[:80]}")
    elif isinstance(content, dict):
        for key, inner in content.items():
            yield from _flatten(inner, f"{name}.{key}" if name else key, data, path)


def _read(array: _Array, data: mmap.mmap) -> np.ndarray:
    count = int(np.prod(array.shape, dtype=np.int64))
    return np.frombuffer(data, array.dtype, count, array.offset).reshape(array.shape)


def _chunked(content: dict[str, Any], data: mmap.mmap, what: str) -> Tensor:
    sides, chunks = content.get("shape"), content.get("chunks")
    parts = list(chunks.values()) if isinstance(chunks, dict) else []
    if not isinstance(sides, dict) or not parts or not all(isinstance(p, _Array) for p in parts):
        raise FileError(f"{what} is an array in chunks without any")
    shape, dtype = tuple(sides.values()), parts[0].dtype
    there = sum(int(np.prod(part.shape, dtype=np.int64)) for part in parts) * dtype.itemsize
    size = checked_size(shape, dtype, there, what)
    if size != there or any(part.dtype != dtype for part in parts):
        raise FileError(f"{what} of shape {list(shape)} has chunks of {there} bytes, not {size}")

    def read() -> np.ndarray:
        return np.concatenate([_read(part, data).reshape(-1) for part in parts]).reshape(shape)

    return Tensor(shape, dtype, read)
