"""Reader of pictures in files that the rows of a table name."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from jaxclip.data.importer import packed, scattered, table_rows
from jaxclip.data.importer.inline import is_inline, picture_in
from jaxclip.data.importer.items import Cursor, Item, files_stamp, from_fields
from jaxclip.data.importer.pictures import ENDINGS, Pictures
from jaxclip.data.importer.table_rows import Columns, Row
from jaxclip.data.naming import (
    KEY_FIELDS,
    LABEL_FIELDS,
    TEXT_FIELDS,
    first_filled,
    is_filled,
    split_of,
    take_split,
)
from jaxclip.data.record import BadRecord

_LOOKED_AT = 32  # rows, for the first files of a table
_NUMBERED = re.compile(rf"(.+(?:{ENDINGS}))#(?:\w+#)?\d+", re.IGNORECASE)


class TableReader:
    """Images named by the rows of a table; :mod:`table_rows` says of which kinds.

    Rows that follow each other and name the same file are captions of the same picture, and so are
    others of that file whose keys and splits, if they have any, are the same. Where the files are:
    :class:`Pictures`. A column ``split``, or folders that are called like splits (``train/…``) and
    hold all files, are the splits.

    Args:
      table: the file.
      image_column: name of the column with file names; empty to find it.
      text_column: name of the column with captions; empty to find it.
      split: the split of all rows; empty to tell by their folders.
      prefix: stands before all keys, where several tables may have the same.
      encoding: of a table that is not JSON.
      part: stands before the key of a picture that another table has named, too; empty if there
        can be none.

    Raises:
      ValueError: a table without the needed columns.
    """

    def __init__(
        self,
        table: pathlib.Path,
        image_column: str = "",
        text_column: str = "",
        split: str = "",
        encoding: str = "utf-8",
        prefix: str = "",
        part: str = "",
    ):
        self._table = table
        self._columns = Columns(image_column, text_column)
        self._split = split
        self._prefix = prefix or (f"{split}/" if split else "")
        self._encoding = encoding
        self._part = part
        self._size = max(1, table.stat().st_size)
        self._raw: Any = None
        table_rows.check(table, self._columns, encoding)
        self._pictures: Pictures | None = None

    def stamp(self) -> str:
        return files_stamp([self._table])

    def fraction(self) -> float | None:
        return None if self._raw is None else min(1.0, self._raw.tell() / self._size)

    def has_pictures(self) -> bool:
        """Whether any of the first files that the table names is there."""
        return self._found().has_some

    def begins_with(self) -> tuple[str, ...]:
        """The first two files that its rows name; fewer if the first rows name no others."""
        rows = self._rows()
        first = itertools.islice(rows, _LOOKED_AT)
        names = dict.fromkeys(row.file for row in first if isinstance(row, Row))
        rows.close()
        return tuple(names)[:2]

    def is_doubtful(self) -> bool:
        """Whether it may be a table of something else, by its beginning."""
        return table_rows.is_doubtful(self._table, self._columns, self._encoding)

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        self._found()
        for number, item in enumerate(self._grouped(), start=1):
            if number > start.item:
                yield Cursor(0, number), item

    def _rows(self) -> Generator[Row | BadRecord, None, None]:
        try:
            with self._table.open("rb") as raw:
                self._raw = raw
                for row in table_rows.rows(self._table, raw, self._columns, self._encoding):
                    yield row._replace(file=_of_caption(row.file)) if isinstance(row, Row) else row
        except OSError as error:
            if not packed.is_damage(error):
                raise
            yield BadRecord("corrupted", f"{self._table} is damaged: {error}")  # in an archive
        finally:
            self._raw = None

    def _found(self) -> Pictures:
        if self._pictures is None:
            rows = self._rows()
            names = (row.file for row in rows if isinstance(row, Row))
            self._pictures = Pictures(self._table, names)
            rows.close()
        return self._pictures

    def _grouped(self) -> Iterator[Item | BadRecord]:
        def file(row: Row | BadRecord) -> str | None:
            return None if isinstance(row, BadRecord) or is_inline(row.file) else row.file

        def identity(row: Row | BadRecord) -> str:
            assert isinstance(row, Row)
            key = str(row.values.get(KEY_FIELDS[0]) or "")
            return "\0".join((row.file, key, take_split(dict(row.values))))

        for number, group in enumerate(scattered.gathered(self._rows, file, identity)):
            yield from (row for row in group if isinstance(row, BadRecord))
            found = [row for row in group if isinstance(row, Row)]
            if found:
                yield self._item(found[0].file, [row.values for row in found], number)

    def _merged(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The values of the first of some rows for a picture, with the captions of all of them.

        Where they name several classes there is a list of these, which is no class.
        """
        values = dict(rows[0])
        if len(rows) == 1:
            return values
        captions: list[Any] = []
        for row in rows:
            text = row.get(self._columns.text or first_filled(row, TEXT_FIELDS) or "")
            captions.extend(text if isinstance(text, list) else [text])
        column = self._columns.text or first_filled(values, TEXT_FIELDS)
        if column or any(map(is_filled, captions)):
            values[column or TEXT_FIELDS[0]] = captions
        label = first_filled(values, LABEL_FIELDS)
        labels = list(dict.fromkeys(str(row.get(label)) for row in rows)) if label else []
        if label and len(labels) > 1:
            values[label] = labels
        return values

    def _item(self, name: str, rows: list[dict[str, Any]], number: int) -> Item | BadRecord:
        values = self._merged(rows)
        if name.startswith(("http://", "https://")):
            detail = "a link, not a file; download the pictures first, with img2dataset for one"
            return BadRecord("missing_image", detail, name)
        key, picture = name, None
        if is_inline(name):
            key, picture = f"{self._table.name.partition('.')[0]}/{number}", picture_in(name)
        split = self._split or split_of(self._found().relative(key))
        if not self._split and (own := take_split(values)):
            split = own
        if isinstance(picture, BadRecord):
            return dataclasses.replace(picture, key=self._prefix + key)
        item = from_fields(
            values,
            key=key,
            image=self._found().find(name) if picture is None else picture,
            text_column=self._columns.text,
            split=split,
        )
        item = dataclasses.replace(item, key=self._prefix + item.key)
        if self._part and isinstance(item, Item):
            item = dataclasses.replace(item, alias=f"{self._part}/{item.key}")
        problem = _without_one_class(values) if len(rows) > 1 else ""
        if problem and isinstance(item, Item) and not item.texts and item.label is None:
            return BadRecord("empty_caption", problem, item.key)
        return item


def _without_one_class(values: Mapping[str, Any]) -> str:
    """Why several rows for a picture without captions make no record; empty if nothing is known."""
    label = first_filled(values, LABEL_FIELDS)
    labels = values[label] if label else None
    if not isinstance(labels, list):
        return ""
    return f"its rows name {len(labels)} classes ({', '.join(labels[:4])}), and a record has one"


def _of_caption(name: str) -> str:
    """The name of a picture without the number of its caption: ``1.jpg#0`` is ``1.jpg``."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


class SplitReader:
    """Several tables, one after the other: of splits (``train/metadata.jsonl``) or other folders.

    Args:
      readers: one for each, in order.
    """

    def __init__(self, readers: Sequence[TableReader]):
        self._readers = list(readers)
        self._current = 0

    def stamp(self) -> str:
        return "+".join(reader.stamp() for reader in self._readers)

    def has_pictures(self) -> bool:
        """Whether any of the first files that a table names is there."""
        return any(reader.has_pictures() for reader in self._readers)

    def fraction(self) -> float | None:
        within = self._readers[self._current].fraction() or 0.0
        return (self._current + within) / len(self._readers)

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._readers)):
            self._current = number
            first = Cursor(0, start.item if number == start.file else 0)
            for cursor, item in self._readers[number].items(first):
                yield Cursor(number, cursor.item), item
