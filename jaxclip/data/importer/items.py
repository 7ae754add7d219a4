"""What the readers of an import hand over, and what they have in common."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import hashlib
import json
import pathlib
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxclip.data import class_values
from jaxclip.data.caption_shapes import captioned, joined_numbers, said_in
from jaxclip.data.class_values import printable
from jaxclip.data.importer import packed
from jaxclip.data.naming import (
    CAPTION_TAGS,
    KEY_FIELDS,
    TEXT_FIELDS,
    find,
    first_filled,
    is_filled,
    take_split,
)
from jaxclip.data.record import BadRecord

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
      split: the split that the source puts it into; empty for none.
      alias: its key where another record has that one, from another file, say; empty for none.
      has_own_key: whether the source itself names the record.
    """

    key: str
    image: bytes | pathlib.Path
    texts: tuple[bytes, ...]
    label: int | str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    split: str = ""
    alias: str = ""
    has_own_key: bool = False


class SourceError(ValueError):
    """The source as a whole is not as it must be; what to do about it is in the message."""


class Reader(Protocol):
    """A source of records; see :func:`jaxclip.data.importer.readers.open_reader`."""

    def stamp(self) -> str:
        """Changes if the source does."""

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        """Everything from a position on, each with the position after it."""

    def fraction(self) -> float | None:
        """Share of the source that was handed over so far; None if unknown."""


@runtime_checkable
class KnowsClasses(Protocol):
    """A reader that knows the names of all classes before it reads any record."""

    def class_names(self) -> Sequence[str]:
        """Names by the number of the class; none if there are no classes, or they are numbers."""


def files_stamp(files: Iterable[pathlib.Path]) -> str:
    """A digest of names, sizes and times of change."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        stamp = f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(stamp.encode(errors="replace"))
    return digest.hexdigest()


def names_apart(files: Sequence[pathlib.Path], folders: int = 0) -> list[str]:
    """A name for each of several files, all different: that up to its first dot, with as many of
    the folders around it as that takes.

    Args:
      files: the files.
      folders: how many folders are named at least.
    """
    stems = [file.name.partition(".")[0] for file in files]
    if len(set(zip(stems, (file.parent for file in files), strict=True))) < len(files):
        stems = [file.stem for file in files]
    parents = [file.parent.parts for file in files]
    names: list[str] = []
    for count in range(folders, max(folders + 1, *map(len, parents), 1) + 1):
        around = [parts[len(parts) - count :] if count < len(parts) else parts for parts in parents]
        names = ["/".join((*each, stem)) for each, stem in zip(around, stems, strict=True)]
        if len(set(names)) == len(files):
            break
    return names


def text_bytes(value: Any) -> tuple[bytes, ...]:
    """Captions as bytes out of whatever :mod:`jaxclip.data.caption_shapes` understands.

    Strings read with ``errors="surrogateescape"`` become the bytes they were read from.
    """
    return tuple(_encoded(each.text) for each in said_in(value))


def _encoded(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    # "surrogatepass" for half surrogates that JSON can spell: no valid UTF-8 either.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def from_fields(
    fields: Mapping[str, Any],
    *,
    key: str,
    image: bytes | pathlib.Path,
    texts: Any = None,
    text_column: str = "",
    split: str = "",
) -> Item | BadRecord:
    """Make an item out of named values; those without a meaning here become ``meta``.

    Args:
      fields: values by name, as JSON or a table have them.
      key: name of the record if the fields have none.
      image: its picture.
      texts: captions from elsewhere, in place of those in the fields.
      text_column: the name under which captions are; empty for the first usual one with any.
      split: see :class:`Item`; empty for that of a field such as ``split``.
    """
    rest = (joined_numbers(fields) if texts is None and not text_column else None) or dict(fields)
    split = split or take_split(rest)
    own_keys = [rest.pop(name) for name in find(rest, KEY_FIELDS)[:1]]
    labelled = class_values.field_of(rest, has_captions=texts is not None, text_column=text_column)
    label = class_values.of_field(labelled, rest[labelled]) if labelled else None
    if labelled and (label is not None or not is_filled(rest[labelled])):
        rest.pop(labelled)  # else it is something more, such as a list of labels
    if texts is None:
        name = text_column or captioned(rest) or first_filled(rest, TEXT_FIELDS)
        texts = rest.pop(name, None) if name else None
    has_own_key = bool(own_keys) and own_keys[0] not in (None, "")
    key = printable(str(own_keys[0]) if has_own_key else key)
    try:
        captions = text_bytes(texts)
        languages = [each.language for each in said_in(texts)]
        if any(languages) and CAPTION_TAGS not in rest:
            rest[CAPTION_TAGS] = languages
        return Item(key, image, captions, label, _jsonable(rest), split, has_own_key=has_own_key)
    except TypeError as error:
        return BadRecord("bad_row", f"the caption is not text: {error}", key)


def _jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of it JSON can hold; empty values say nothing."""
    kept = {}
    for name, value in values.items():
        if value is None or value == "":
            continue
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError, RecursionError):
            if not isinstance(value, datetime.date | datetime.time | decimal.Decimal):
                continue
            value = str(value)  # a column of times or of decimal numbers
        kept[str(name)] = value
    return kept


def read_image(image: bytes | pathlib.Path) -> bytes | BadRecord:
    """The bytes of an item's picture."""
    if isinstance(image, bytes):
        return image
    try:
        status = image.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            # Reading a pipe would wait for ever.
            return BadRecord("missing_image", f"{image} is no file")
        size = status.st_size
        if size > MAX_IMAGE_BYTES:
            return BadRecord("absurd_size", f"{size} bytes")
        return image.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        if packed.is_damage(error):  # in an archive
            return BadRecord("corrupted", str(error))
        return BadRecord("missing_image", f"{type(error).__name__}: {error}")
