"""Reader of Arrow files, such as those that Hugging Face ``datasets`` saved."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from jaxclip.data.importer import arrow_files
from jaxclip.data.importer.arrow_columns import OPTION, columns_of
from jaxclip.data.importer.items import Cursor, Item, files_stamp, names_apart
from jaxclip.data.importer.parquet import items_of, with_alias
from jaxclip.data.importer.pictures import pictures_named
from jaxclip.data.record import BadRecord

# So many of the first names of pictures tell the folder that they are in.
_NAMES = 32
# Rows that are made into items at once.
_AT_ONCE = 32


class ArrowReader:
    """Rows of Arrow files, as :class:`jaxclip.data.importer.parquet.ParquetReader` has them.

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
        self._class_names: list[str] = []
        self._before = [0]
        for file in self._files:
            schema, batches = arrow_files.batches(file)
            columns = columns_of(file, schema, OPTION, self._wanted)
            self._class_names = self._class_names or columns.class_names
            self._before.append(self._before[-1] + sum(batch.num_rows for batch in batches))
        self._done = 0

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

    def _rows(self, number: int, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
        """Items of a file from a row on, each with the number of rows up to and with it."""
        file, name = self._files[number], self._names[number]
        schema, batches = arrow_files.batches(file)
        columns = columns_of(file, schema, OPTION, self._wanted)
        row, pictures = 0, None
        for batch in batches:
            end = row + batch.num_rows
            if end <= first:
                row = end
                continue
            try:
                arrow_files.check(batch)
                pictures = pictures or pictures_named(
                    batch.column(columns.image).slice(0, _NAMES).to_pylist(), file
                )
                for place in range(0, batch.num_rows, _AT_ONCE):
                    for item in items_of(batch.slice(place, _AT_ONCE), file, columns, row):
                        row += 1
                        if row > first:
                            yield row, with_alias(item, name, row - 1, pictures)
            except (OSError, ValueError) as error:
                yield end, BadRecord("corrupted", f"{file} is damaged, {end - row} rows: {error}")
                row = end
