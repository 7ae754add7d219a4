"""Reader of Arrow files, such as those that Hugging Face ``datasets`` saved."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from jaxclip.data.importer import arrow_files
from jaxclip.data.importer.arrow_columns import OPTION, Columns, columns_of
from jaxclip.data.importer.items import Item
from jaxclip.data.importer.parquet import items_of
from jaxclip.data.importer.pictures import pictures_named
from jaxclip.data.importer.row_reader import RowReader, with_alias
from jaxclip.data.record import BadRecord

# So many of the first names of pictures tell the folder that they are in.
_NAMES = 32
# Rows that are made into items at once.
_AT_ONCE = 32


class ArrowReader(RowReader):
    """Rows of Arrow files, as :class:`jaxclip.data.importer.parquet.ParquetReader` has them."""

    def _look(self, file: pathlib.Path) -> tuple[Columns, int]:
        schema, batches = arrow_files.batches(file)
        columns = columns_of(file, schema, OPTION, self._wanted)
        return columns, sum(batch.num_rows for batch in batches)

    def _rows(self, number: int, first: int) -> Iterator[tuple[int, Item | BadRecord]]:
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
