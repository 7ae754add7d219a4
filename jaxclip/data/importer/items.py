"""What the readers of an import hand over, and what they have in common."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxclip.data.record import BadRecord

# Names under which tables and JSON members hold the parts of a record, the more usual first.
FILE_FIELDS = ("file", "filepath", "file_name", "filename", "image", "image_path", "path")
TEXT_FIELDS = ("texts", "captions", "text", "caption", "title")
KEY_FIELDS = ("key", "id")
LABEL_FIELDS = ("label", "class", "cls")

# Files with more bytes than this are not read: no picture that can be trained on is so large.
MAX_IMAGE_BYTES = 128 << 20


class Cursor(NamedTuple):
    """Position in a source: so many items of so many files have been handed over."""

    file: int = 0
    item: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A picture and captions as found, nothing of it checked.

    Attributes:
      key: name of the record.
      image: encoded bytes, or the file that holds them.
      texts: captions in (what should be) UTF-8.
      label: class index, class name, or None.
      meta: whatever else the source says, JSON values by name.
    """

    key: str
    image: bytes | pathlib.Path
    texts: tuple[bytes, ...]
    label: int | str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Reader(Protocol):
    """A source of records; see :func:`jaxclip.data.importer.readers.open_reader`."""

    def stamp(self) -> str:
        """Changes if the source does."""

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        """Everything from a position on, each with the position after it."""

    def fraction(self) -> float | None:
        """Share of the source that was handed over so far; None if unknown."""


def files_stamp(files: Iterable[pathlib.Path]) -> str:
    """A digest of names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()


def first_of(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of some names that occurs."""
    return next((name for name in names if name in values), None)


def text_bytes(value: Any) -> tuple[bytes, ...]:
    """Captions as bytes out of a string, bytes, a list of them, or None.

    Strings read with ``errors="surrogateescape"`` become the bytes they were read from.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        # "surrogatepass" for half surrogates that JSON can spell: no valid UTF-8 either.
        try:
            return (value.encode("utf-8", "surrogateescape"),)
        except UnicodeEncodeError:
            return (value.encode("utf-8", "surrogatepass"),)
    if isinstance(value, bytes):
        return (value,)
    if isinstance(value, Sequence):
        return tuple(text for each in value for text in text_bytes(each))
    raise TypeError(f"{type(value).__name__} is no caption")


def parse_label(value: Any) -> int | str | None:
    """A class index if it is a whole number, a class name if it is another text, else None."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = " ".join(printable(str(value)).split())
    # What does not fit into 64 bits is an identifier rather than an index.
    return int(text) if re.fullmatch(r"-1|[0-9]{1,18}", text) else text or None


def from_fields(
    fields: Mapping[str, Any], *, key: str, image: bytes | pathlib.Path, texts: Any = None
) -> Item | BadRecord:
    """Make an item out of named values; those without a meaning here become ``meta``.

    Args:
      fields: values by name, as JSON or a table have them.
      key: name of the record if the fields have none.
      image: its picture.
      texts: captions from elsewhere, in place of those in the fields.
    """
    rest = dict(fields)
    named = first_of(rest, KEY_FIELDS)
    own_key = rest.pop(named) if named else None
    labelled = first_of(rest, LABEL_FIELDS)
    label = parse_label(rest.pop(labelled)) if labelled else None
    if texts is None:
        captioned = first_of(rest, TEXT_FIELDS)
        texts = rest.pop(captioned) if captioned else None
    key = printable(key if own_key in (None, "") else str(own_key))
    try:
        return Item(key, image, text_bytes(texts), label, _jsonable(rest))
    except TypeError as error:
        return BadRecord("bad_row", f"the caption is not text: {error}", key)


def printable(text: str) -> str:
    """The text as valid Unicode: what stands for undecodable bytes is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of it JSON can hold; empty values say nothing."""
    kept = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError):
            continue
        kept[str(name)] = value
    return kept


def read_image(image: bytes | os.PathLike[str]) -> bytes | BadRecord:
    """The bytes of an item's picture."""
    if isinstance(image, bytes):
        return image
    try:
        size = os.stat(image).st_size
        if size > MAX_IMAGE_BYTES:
            return BadRecord("absurd_size", f"{size} bytes")
        return pathlib.Path(image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        return BadRecord("missing_image", f"{type(error).__name__}: {error}")
