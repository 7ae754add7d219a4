"""Reader of Parquet files with encoded images in a column."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxclip.data.importer.items import (
    TEXT_FIELDS,
    Cursor,
    Item,
    files_stamp,
    first_of,
    from_fields,
)
from jaxclip.data.record import BadRecord

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
# Rows decoded at once.
_BATCH_ROWS = 32


class ParquetReader:
    """Rows of Parquet files.

    The image column holds bytes, or structs with a member ``bytes`` (as Hugging Face ``datasets``
    writes them); captions are strings or lists of strings. Other columns with plain values become
    meta.

    Args:
      files: the files, in order.

    Raises:
      ValueError: a file is damaged or has no column with images or captions.
    """

    def __init__(self, files: Sequence[pathlib.Path]):
        self._files = list(files)
        self._before = [0]
        for file in self._files:
            with _open(file) as opened:
                _columns(file, opened)
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
                yield Cursor(number, row), item

    def _rows(self, file: pathlib.Path, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
        """Items from a row on, each with the number of rows up to and with it."""
        with _open(file) as opened:
            image, text = _columns(file, opened)
            row = 0
            for group in range(opened.num_row_groups):
                size = opened.metadata.row_group(group).num_rows
                if row + size <= first:
                    row += size
                    continue
                try:
                    for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group]):
                        for item in _items(batch, file, image, text, row):
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


def _open(file: pathlib.Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        # Reads a row group piece by piece in place of whole.
        return pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pyarrow.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{file} is no Parquet file or is damaged: {error}") from error


def _columns(file: pathlib.Path, opened: Any) -> tuple[str, str]:
    """Names of the columns with images and with captions."""
    import pyarrow

    schema = opened.schema_arrow
    types = {name: schema.field(name).type for name in schema.names}

    def has_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    images = [name for name in IMAGE_COLUMNS if name in types and has_bytes(types[name])]
    images += [name for name, kind in types.items() if name not in images and has_bytes(kind)]
    text = first_of(types, TEXT_FIELDS)
    listing = ", ".join(f"{name}: {kind}" for name, kind in types.items())
    if not images or text is None:
        what = "captions" if images else "images"
        names = TEXT_FIELDS if images else IMAGE_COLUMNS
        raise ValueError(
            f"{file} has no column with {what} (it has {listing}); name one of them "
            f"{' or '.join(names)}"
        )
    return images[0], text


def _items(
    batch: Any, file: pathlib.Path, image: str, text: str, row: int
) -> Iterator[Item | BadRecord]:
    images = batch.column(image)
    captions = _as_binary(batch.column(text))
    others = {name: batch.column(name) for name in batch.schema.names if name not in (image, text)}
    for i in range(batch.num_rows):
        picture = images[i].as_py()
        path = ""
        if isinstance(picture, dict):
            path = picture.get("path") or ""
            picture = picture.get("bytes")
        fields = {name: _plain(column[i]) for name, column in others.items()}
        key = path or f"{file.stem}/{row + i}"
        yield from_fields(fields, key=key, image=picture or b"", texts=captions[i].as_py() or ())


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
