"""Reader of Parquet files with encoded images in a column."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxclip.data import file_kinds
from jaxclip.data.caption_shapes import captioned
from jaxclip.data.class_values import parse_label
from jaxclip.data.importer.arrow_columns import JSON, OPTION, Columns, columns_of
from jaxclip.data.importer.arrow_types import is_list, plain_type
from jaxclip.data.importer.inline import is_inline, picture_in
from jaxclip.data.importer.items import Item, from_fields
from jaxclip.data.importer.pictures import pictures_of
from jaxclip.data.importer.row_reader import RowReader, with_alias
from jaxclip.data.naming import LABEL_FIELDS, TEXT_FIELDS, first_filled, is_filled, split_of
from jaxclip.data.record import BadRecord

# Folders of a picture's name that may be beside its table.
_DEEPEST = 4
# Rows decoded at once.
_BATCH_ROWS = 32


class ParquetReader(RowReader):
    """Rows of Parquet files.

    The image column holds bytes, or structs with a member ``bytes`` (as Hugging Face ``datasets``
    writes them), or text: the bytes as base64, or names of files beside the table; or lists of one
    of these. Captions are strings, lists of strings, or conversations and the like, as
    :mod:`annotations` has them. Other columns with plain values become meta.

    Without captions there may be class labels; their names are those that Hugging Face
    ``datasets`` notes in the file.
    """

    def _look(self, file: pathlib.Path) -> tuple[Columns, int]:
        with open_file(file) as opened:
            columns = columns_of(file, opened.schema_arrow, OPTION, self._wanted)
            return columns, opened.metadata.num_rows

    def _rows(self, number: int, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
        file, name = self._files[number], self._names[number]
        with open_file(file) as opened:
            columns = columns_of(file, opened.schema_arrow, OPTION, self._wanted)
            pictures = pictures_of(opened, file, columns.image)
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
                                yield row, with_alias(item, name, row - 1, pictures)
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
        raise ValueError(f"{file} {_instead(file) or f'is damaged: {error}'}") from error


def _instead(file: pathlib.Path) -> str:
    """What a file is that is no Parquet file; empty if it seems to be one."""
    with open(file, "rb") as raw:
        begin = raw.read(1024)
    if begin.startswith(b"PAR1"):
        return ""
    return f"is no Parquet file, but {file_kinds.kind_of(begin)}" if begin else "is empty"


def items_of(
    batch: Any, file: pathlib.Path, columns: Columns, row: int
) -> Iterator[Item | BadRecord]:
    """The rows of a batch of Arrow as items; the first is number ``row`` of the file."""
    images = batch.column(columns.image)
    captions = _captions_of(batch, columns)
    used = (columns.image, columns.text, *columns.more)
    others = {name: batch.column(name) for name in batch.schema.names if name not in used}
    for i in range(batch.num_rows):
        path, picture = _picture(images[i].as_py(), file.parent)
        fields = {**columns.given, **{name: _plain(column[i]) for name, column in others.items()}}
        label = _take_label(fields, columns)
        key = path or f"{file.stem}/{row + i}"
        texts = captions[i] if captions is not None else None
        if captions is not None and not is_filled(texts):
            # The first that is not empty, as in other sources.
            other = first_filled(fields, TEXT_FIELDS)
            texts = fields.pop(other) if other and is_filled(fields[other]) else texts
        if not picture:
            yield BadRecord("missing_image", _without_bytes(fields), key)
        elif isinstance(picture, BadRecord):
            yield dataclasses.replace(picture, key=key)
        else:
            texts = texts if is_filled(texts) else ()
            item = from_fields(fields, key=key, image=picture, texts=texts)
            if isinstance(item, Item) and isinstance(label, str):
                item = dataclasses.replace(item, label=label)  # a name, also if it is "747"
            if isinstance(item, Item) and isinstance(picture, pathlib.Path) and not item.split:
                item = dataclasses.replace(item, split=split_of(path))
            yield item


def _captions_of(batch: Any, columns: Columns) -> list[Any] | None:
    """Captions of each row; None if there are none but labels."""
    if not columns.text:
        return None
    captions = _captions(batch.column(columns.text))
    if columns.text == JSON:
        return [_within_json(value) for value in captions]
    if columns.more:
        more = [_captions(batch.column(name)) for name in columns.more]
        return [list(each) for each in zip(captions, *more, strict=True)]
    return captions


def _take_label(fields: dict[str, Any], columns: Columns) -> int | str | None:
    """The class of a row, which stands under its usual name then."""
    value = fields.get(columns.label)
    label = parse_label(int(value) if isinstance(value, bool) else value)
    if isinstance(label, int) and 0 <= label < len(columns.class_names):
        label = columns.class_names[label]
    if columns.label:
        value = fields.pop(columns.label)
        fields[LABEL_FIELDS[0]] = value if label is None else label
    return label


def _without_bytes(fields: Mapping[str, Any]) -> str:
    """Why a row has no picture; img2dataset writes rows of failed downloads, too."""
    said = [fields.get(name) for name in ("status", "error_message")]
    why = ": ".join(each for each in said if isinstance(each, str) and each)
    return "no bytes in the image's column" + (f" ({why})" if why else "")


def _within_json(value: Any) -> Any:
    """The captions in a sample's JSON file, as its text or as an object."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, bytes) else value
    name = captioned(value) if isinstance(value, Mapping) else None
    return value[name] if name and isinstance(value, Mapping) else None


def _picture(value: Any, folder: pathlib.Path) -> tuple[str, bytes | pathlib.Path | BadRecord]:
    """What a cell of the image column holds: its name, if it has one, and the picture."""
    path = ""
    if isinstance(value, list):
        if len(value) != 1:
            return path, BadRecord("bad_row", f"{len(value)} pictures in place of one")
        value = value[0]
    if isinstance(value, dict):
        path = value.get("path") or ""
        value = value.get("bytes") or path
    if not isinstance(value, str):
        return path, value or b""
    if value.startswith(("http://", "https://")):
        return value, BadRecord("missing_image", "a link; download the pictures first")
    if not value:
        return path, b""
    if is_inline(value):
        return path, picture_in(value)
    return value, _beside(folder, value)


def _beside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """A file by its name, beside a table also without the folders that another machine had."""
    parts = pathlib.PurePath(name.replace("\\", "/")).parts
    for first in range(max(0, len(parts) - _DEEPEST), len(parts)):
        file = folder.joinpath(*parts[first:])
        if (first or len(parts) <= _DEEPEST) and file.is_file():
            return file
    return folder / name


def _captions(column: Any) -> list[Any]:
    """Captions of each row: strings as bytes, since not all that claims to be UTF-8 is."""
    import pyarrow

    kind = plain_type(column.type)
    in_lists = is_list(kind)
    inner = plain_type(kind.value_type) if in_lists else kind
    if pyarrow.types.is_nested(inner) or pyarrow.types.is_primitive(inner):
        return [_plain(value) for value in column]
    if kind is not column.type and not pyarrow.types.is_dictionary(column.type):
        column = column.cast(kind)  # views have no way to bytes but by strings
    binary = pyarrow.large_binary()
    return column.cast(pyarrow.large_list(binary) if in_lists else binary).to_pylist()


def _plain(value: Any) -> Any:
    try:
        return value.as_py()
    except (UnicodeDecodeError, ValueError):
        return None
