"""Messages between the training process and its data workers: JSON with arrays behind it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxclip.data.decoded_cache import Loaded
from jaxclip.data.record import BadRecord, Record

_SIZES = struct.Struct("<II")

Message = tuple[dict[str, Any], list[np.ndarray]]


def encode(message: dict[str, Any], arrays: Sequence[np.ndarray] = ()) -> bytes:
    """A message as bytes.

    Args:
      message: values of JSON; mappings and tuples of other kinds become dicts and lists.
      arrays: of any shape and numeric dtype.
    """
    whole = [np.ascontiguousarray(array) for array in arrays]
    described = [(array.dtype.str, array.shape) for array in whole]
    text = json.dumps({"message": message, "arrays": described}, default=_plain).encode("ascii")
    body = b"".join(array.tobytes() for array in whole)
    return _SIZES.pack(len(text), len(body)) + text + body


def _plain(value: Any) -> Any:
    """Mappings such as ConfigDict, and NumPy's numbers, as JSON knows them."""
    if hasattr(value, "items"):
        return dict(value.items())
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"{value!r} can't be told to a data worker")


class Parser:
    """Puts messages together out of the pieces in which they arrive."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are whole with these bytes."""
        self._bytes += data
        while len(self._bytes) >= _SIZES.size:
            text_size, body_size = _SIZES.unpack_from(self._bytes)
            end = _SIZES.size + text_size + body_size
            if len(self._bytes) < end:
                return
            content = bytes(self._bytes[_SIZES.size : end])
            del self._bytes[:end]
            yield _decoded(content, text_size)


def receive(read: Callable[[int], bytes], parser: Parser) -> Iterator[Message]:
    """Messages until there are no more.

    Args:
      read: gives some bytes, at most so many; none at the end.
      parser: of this sender.
    """
    while data := read(1 << 16):
        yield from parser.feed(data)


def _decoded(content: bytes, text_size: int) -> Message:
    values = json.loads(content[:text_size])
    arrays, start = [], text_size
    for name, shape in values["arrays"]:
        dtype = np.dtype(name)
        count = int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(content, dtype, count, start).reshape(shape))
        start += count * dtype.itemsize
    return values["message"], arrays


def pack_outcome(outcome: Loaded | BadRecord, arrays: list[np.ndarray]) -> list[Any]:
    """A record, or why it can't be used, as values of JSON; its arrays are added to the list."""
    if isinstance(outcome, BadRecord):
        return [outcome.reason, outcome.detail, outcome.key]
    extras: dict[str, Any] = {}
    for key, value in outcome.extras.items():
        if isinstance(value, np.ndarray):
            extras[key] = len(arrays)
            arrays.append(value)
        else:
            extras[key] = list(value)
    record = outcome.record
    has_pixels = outcome.pixels is not None
    return [
        outcome.index, record.texts, record.label, record.key, has_pixels, outcome.size, extras,
    ]  # fmt: skip


def unpack_outcome(packed: Sequence[Any], arrays: Sequence[np.ndarray]) -> Loaded | BadRecord:
    """What :func:`pack_outcome` packed; of the pixels it says only whether there are any."""
    if len(packed) == 3:
        return BadRecord(*packed)
    index, texts, label, key, has_pixels, size, extras = packed
    return Loaded(
        index,
        Record(b"", tuple(texts), label, key),
        np.empty((0, 0, 3), np.uint8) if has_pixels else None,
        (size[0], size[1]),
        {
            name: arrays[value] if isinstance(value, int) else tuple(value)
            for name, value in extras.items()
        },
    )
