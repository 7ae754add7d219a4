"""Reader of TFRecord files that are no TFDS data set, such as img2dataset's."""

from __future__ import annotations

import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxclip.data.importer import packed
from jaxclip.data.importer.arrow_columns import IMAGE_COLUMNS
from jaxclip.data.importer.items import Cursor, Item, files_stamp, from_fields
from jaxclip.data.naming import find
from jaxclip.data.record import BadRecord, example_class
from jaxclip.data.tfrecord import masked_crc

# Lengths beyond are damage.
_LONGEST = 1 << 30
_IMAGES = (*IMAGE_COLUMNS, "encoded", "image_raw", "img_raw")
# What the models of TensorFlow put before the names of all features of a picture.
_PREFIX, _CLASSES = "image/", ("class/text", "class/label")


class TFRecordReader:
    """Records that are each a serialised ``tf.train.Example``.

    The picture is a feature of a usual name (``jpg``, ``image``, ``image/encoded``, …), captions
    and labels are found by their names as in tables, and the rest becomes meta.

    Args:
      files: in order; they may be compressed.
      splits: the split of each; empty = none says.
    """

    def __init__(self, files: Sequence[pathlib.Path], splits: Sequence[str] = ()):
        self._files = list(files)
        self._splits = list(splits) or [""] * len(self._files)
        self._done = 0.0

    def stamp(self) -> str:
        return files_stamp(self._files)

    def fraction(self) -> float | None:
        return self._done

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._files)):
            file, split = self._files[number], self._splits[number]
            done = start.item if number == start.file else 0
            with open(file, "rb") as raw:
                size = max(1, file.stat().st_size)
                for count, data in enumerate(_messages(file, raw), start=1):
                    self._done = (number + min(1.0, raw.tell() / size)) / len(self._files)
                    if count > done:
                        place = f"{file.name.partition('.')[0]}/{count - 1}"
                        if isinstance(data, bytes):
                            yield Cursor(number, count), _item(data, place, split)
                        else:
                            yield Cursor(number, count), data


def _messages(file: pathlib.Path, raw: Any) -> Iterator[bytes | BadRecord]:
    """The bytes of each record; where one is damaged, or all that follow, what is wrong."""
    try:
        data = packed.unpacked(raw)
        while header := data.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else _LONGEST + 1
            is_sound = header[8:] == struct.pack("<I", masked_crc(header[:8]))
            if length > _LONGEST or not is_sound:
                yield BadRecord("corrupted", f"{file} is damaged, or no TFRecord file: all is lost "
                                "from there on")  # fmt: skip
                return
            content = data.read(length)
            if len(content) < length:
                yield BadRecord("corrupted", f"{file} ends within a record")
                return
            if data.read(4) == struct.pack("<I", masked_crc(content)):
                yield content
            else:
                yield BadRecord("corrupted", f"{file}: the checksum of a record is wrong")
    except (EOFError, OSError, zlib.error, *packed.DAMAGE) as error:
        if not packed.is_damage(error):
            raise
        yield BadRecord("corrupted", f"{file} is damaged: {error}")


def _item(data: bytes, place: str, split: str) -> Item | BadRecord:
    message = example_class()()
    try:
        message.ParseFromString(data)
    except Exception as error:  # as in parse_example
        return BadRecord("corrupted", f"not a tf.train.Example: {error}", place)
    fields = {
        name.removeprefix(_PREFIX): _value(feature)
        for name, feature in message.features.feature.items()
    }
    pictures = [name for name in find(fields, _IMAGES) if isinstance(fields[name], bytes)]
    if not pictures:
        names = ", ".join(sorted(fields))
        return BadRecord("missing_image", f"no feature with a picture among {names}", place)
    image = fields.pop(pictures[0])
    texts = {name: _text(value) for name, value in fields.items()}
    for name in _CLASSES:
        if name in texts:
            texts.setdefault("label", texts.pop(name))
    return from_fields(texts, key=place, image=image, split=split)


def _value(feature: Any) -> Any:
    """The value of a feature, or a list of them; None for none."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return values[0] if len(values) == 1 else values or None


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(each) for each in value]
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
