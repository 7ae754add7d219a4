"""Reader of Parquet files with encoded images in a column."""

from __future__ import annotations

import base64
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data.importer.items import Cursor, Item, files_stamp, from_fields, parse_label
from jaxclip.data.naming import FILE_FIELDS, LABEL_FIELDS, TEXT_FIELDS, find
from jaxclip.data.record import BadRecord
from jaxclip.registry import hint

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LINK_COLUMNS = ("url", "image_url", "urls", "link", "image_link")
# Text that is longer is no file's name.
_LONGEST_NAME = 255
# Rows decoded at once.
_BATCH_ROWS = 32


class ParquetReader:
    """Rows of Parquet files.

    The image column holds bytes, or structs with a member ``bytes`` (as Hugging Face ``datasets``
    writes them), or text: the bytes as base64, or names of files beside the table. Captions are
    strings or lists of strings. Other columns with plain values become meta.

    Without captions there may be class labels; their names are those that Hugging Face
    ``datasets`` notes in the file.

    Args:
      files: the files, in order.
      image_column: name of the column with images; empty to find it.
      text_column: name of the column with captions; empty to find it.
      splits: the split of each file; empty = none says.

    Raises:
      ValueError: a file is damaged or has no column with images, or neither captions nor labels.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        image_column: str = "",
        text_column: str = "",
        splits: Sequence[str] = (),
    ):
        self._files = list(files)
        self._splits = list(splits) or [""] * len(self._files)
        self._wanted = (image_column, text_column)
        self._before = [0]
        for file in self._files:
            with open_file(file) as opened:
                columns_of(file, opened.schema_arrow, _OPTION, self._wanted)
                self._before.append(self._before[-1] + opened.metadata.num_rows)
        self._done = 0

    def stamp(self) -> str:
        return files_stamp(self._files)

    def fraction(self) -> float | None:
        return self._done / max(1, self._before[-1])

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._files)):
            first = start.item if number == start.file else 0
            for row, item in self._rows(self._files[number], first):
                self._done = self._before[number] + row
                if isinstance(item, Item) and self._splits[number]:
                    item = dataclasses.replace(item, split=self._splits[number])
                yield Cursor(number, row), item

    def _rows(self, file: pathlib.Path, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
        """Items from a row on, each with the number of rows up to and with it."""
        with open_file(file) as opened:
            columns = columns_of(file, opened.schema_arrow, _OPTION, self._wanted)
            row = 0
            for group in range(opened.num_row_groups):
                size = opened.metadata.row_group(group).num_rows
                if row + size <= first:
                    row += size
                    continue
                try:
                    for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group]):
                        for item in items_of(batch, file, columns, row):
                            row += 1
                            if row > first:
                                yield row, item
                except (OSError, ValueError) as error:
                    lost = self._lost(opened, group, row)
                    detail = f"{file} is damaged in row group {group}, {lost - row} rows: {error}"
                    row = lost
                    yield row, BadRecord("corrupted", detail)

    def _lost(self, opened: Any, group: int, row: int) -> int:
        """Number of the row after a damaged row group."""
        return sum(opened.metadata.row_group(g).num_rows for g in range(group + 1))


def open_file(file: pathlib.Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # Reads a row group piece by piece in place of whole.
        return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file} is no Parquet file or is damaged: {error}") from error


class Columns(NamedTuple):
    """Names of the columns with images, captions and labels (empty = none), and class names."""

    image: str
    text: str
    label: str
    class_names: list[str]


# How to say which column it is, for errors.
_OPTION = "say which it is with --{}-column"


def columns_of(
    file: pathlib.Path, schema: Any, option: str, wanted: tuple[str, str] = ("", "")
) -> Columns:
    """The columns of a table by their usual names.

    Args:
      file: where the table is, for errors.
      schema: of Arrow.
      option: how to name a column, for errors; ``{}`` stands for ``image`` or ``text``.
      wanted: names of the columns with images and captions; empty to find them.

    Raises:
      ValueError: there is no column with images, or neither captions nor labels.
    """
    import pyarrow

    types = {name: schema.field(name).type for name in schema.names}
    listing = ", ".join(f"{name}: {kind}" for name, kind in types.items())
    for name, which in zip(wanted, ("image", "text"), strict=True):
        if name and name not in types:
            raise ValueError(f"{file} has no column {name!r} (--{which}-column){hint(name, types)}")

    def has_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    def is_text(kind: Any) -> bool:
        return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)

    images = [name for name in find(types, IMAGE_COLUMNS) if has_bytes(types[name])]
    images += [name for name, kind in types.items() if name not in images and has_bytes(kind)]
    # Text that may be base64 or the name of a file.
    images += [name for name in find(types, (*IMAGE_COLUMNS, *FILE_FIELDS)) if is_text(types[name])]
    image = wanted[0] or next(iter(images), "")
    text = wanted[1] or next((n for n in find(types, TEXT_FIELDS) if n != image), "")
    label = next(iter(find(types, LABEL_FIELDS)), "")
    if not image or not (text or label):
        what, names, which = (
            ("captions", TEXT_FIELDS, "text") if image else ("images", IMAGE_COLUMNS, "image")
        )
        links = find(types, LINK_COLUMNS) if not image else ()
        way = (
            f"{links[0]!r} are links: download the pictures first, with img2dataset for one"
            if links
            else f"{option.format(which)}, or name it {' or '.join(names)}"
        )
        raise ValueError(f"{file} has no column with {what} (it has {listing}); {way}")
    return Columns(image, text, label, _class_names(schema.metadata or {}, label))


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> list[str]:
    """Names of the classes as Hugging Face ``datasets`` notes them; none if it does not."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, ValueError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def items_of(
    batch: Any, file: pathlib.Path, columns: Columns, row: int
) -> Iterator[Item | BadRecord]:
    """The rows of a batch of Arrow as items; the first is number ``row`` of the file."""
    images = batch.column(columns.image)
    captions = _as_binary(batch.column(columns.text)) if columns.text else None
    others = {
        name: batch.column(name)
        for name in batch.schema.names
        if name not in (columns.image, columns.text)
    }
    for i in range(batch.num_rows):
        path, picture = _picture(images[i].as_py(), file.parent)
        fields = {name: _plain(column[i]) for name, column in others.items()}
        label = parse_label(fields.get(columns.label))
        if isinstance(label, int) and 0 <= label < len(columns.class_names):
            fields[columns.label] = columns.class_names[label]
        key = path or f"{file.stem}/{row + i}"
        texts = captions[i].as_py() if captions is not None else None
        if isinstance(picture, BadRecord):
            yield dataclasses.replace(picture, key=key)
        else:
            yield from_fields(fields, key=key, image=picture, texts=texts or ())


def _picture(value: Any, folder: pathlib.Path) -> tuple[str, bytes | pathlib.Path | BadRecord]:
    """What a cell of the image column holds: its name, if it has one, and the picture."""
    path = ""
    if isinstance(value, dict):
        path = value.get("path") or ""
        value = value.get("bytes") or path
    if not isinstance(value, str):
        return path, value or b""
    if value.startswith(("http://", "https://")):
        return value, BadRecord("missing_image", "a link; download the pictures first")
    if not value:
        return path, b""
    is_data = value.startswith("data:")
    if is_data or len(value) > _LONGEST_NAME:
        encoded = value.partition(";base64,")[2] if is_data else value
        try:
            # It may be wrapped into lines.
            return path, base64.b64decode("".join(encoded.split()), validate=True)
        except ValueError:
            pass
    return value, folder / value


def _as_binary(column: Any) -> Any:
    """Strings as bytes, since not all that claims to be UTF-8 is."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return column.cast(pyarrow.large_list(pyarrow.large_binary()))
    return column.cast(pyarrow.large_binary())


def _plain(value: Any) -> Any:
    try:
        return value.as_py()
    except (UnicodeDecodeError, ValueError):
        return None
