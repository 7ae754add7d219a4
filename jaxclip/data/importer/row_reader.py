"""What the readers of Parquet and of Arrow files share: rows of files of columns."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from jaxclip.data.importer.arrow_columns import Columns
from jaxclip.data.importer.items import Cursor, Item, files_stamp, names_apart
from jaxclip.data.importer.pictures import Pictures
from jaxclip.data.record import BadRecord


class RowReader:
    """Rows of files, whose formats know :meth:`_look` and :meth:`_rows`.

    Args:
      files: the files, in order.
      image_column: name of the column with images; empty to find it.
      text_column: name of the column with captions; empty to find it.
      splits: the split of each file; empty = none says.

    Raises:
      FileNotFoundError: a file is not there.
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
        self._names = names_apart(self._files, folders=1)
        self._splits = list(splits) or [""] * len(self._files)
        self._wanted = (image_column, text_column)
        self._before = [0]
        self._class_names: list[str] = []
        for file in self._files:
            columns, rows = self._look(file)
            self._class_names = self._class_names or columns.class_names
            self._before.append(self._before[-1] + rows)
        self._done = 0

    def _look(self, file: pathlib.Path) -> tuple[Columns, int]:
        """The columns of a file, and how many rows it has."""
        raise NotImplementedError

    def _rows(self, number: int, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
        """Items of a file from a row on, each with the number of rows up to and with it."""
        raise NotImplementedError

    def class_names(self) -> list[str]:
        return self._class_names

    def stamp(self) -> str:
        return files_stamp(self._files)

    def fraction(self) -> float | None:
        return self._done / max(1, self._before[-1])

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._files)):
            first = start.item if number == start.file else 0
            for row, item in self._rows(number, first):
                self._done = self._before[number] + row
                if isinstance(item, Item) and self._splits[number]:
                    item = dataclasses.replace(item, split=self._splits[number])
                yield Cursor(number, row), item


def with_alias(
    item: Item | BadRecord, name: str, row: int, pictures: Pictures | None
) -> Item | BadRecord:
    """An item with its picture where that is, and with another key than its picture's path, which
    many rows may have, or its file's name, which files of other folders may have; a key that the
    table gives stays its only one.

    Args:
      item: the item.
      name: of its file, which no other file has; see :func:`names_apart`.
      row: its number within the file.
      pictures: where the pictures are that the file names; None if it names none.
    """
    if isinstance(item, Item) and pictures and isinstance(item.image, pathlib.Path):
        item = dataclasses.replace(item, image=pictures.locate(item.image))
    if isinstance(item, BadRecord) or item.has_own_key:
        return item
    return dataclasses.replace(item, alias=f"{name}/{row}")
