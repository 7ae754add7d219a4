"""Finds tables of captions by what is in them, where none has a usual name."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Sequence

from jaxclip.data.importer import folders, instead, table_parts
from jaxclip.data.importer.folder import TreeReader
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.importer.table import SplitReader, TableReader
from jaxclip.data.naming import split_in_name, split_within, splits_of_files

_LOG = logging.getLogger(__name__)


def several(folder: pathlib.Path, tables: Sequence[pathlib.Path]) -> str:
    """What to say of several tables of which one is meant."""
    names = ", ".join(table.name for table in tables)
    return (
        f"{str(folder)!r} holds several tables of captions ({names}); name one, or by a pattern "
        "those that belong together"
    )


def in_folder(
    folder: pathlib.Path, columns: tuple[str, str], encoding: str
) -> TableReader | SplitReader | None:
    """Tables of other names, if they say which captions belong to pictures that are there.

    Raises:
      ValueError: there are several, and their names are no splits (``train.csv``, ``val.csv``).
    """
    readers: dict[pathlib.Path, TableReader] = {}
    for tables in table_parts.series(instead.candidates(folder)):
        for table in tables:
            reader = _reader_with_pictures(table, columns, encoding)
            if reader is None:
                if len(tables) > instead.MAX_TABLES and table == tables[0]:
                    break  # so many are something else, if the first is
                continue
            if _is_of_something_else(reader, folder, encoding):
                _say_left_out(folder, table)
                continue
            readers[table] = reader
    certain = [table for table, reader in readers.items() if not reader.is_doubtful()]
    for table in set(readers).difference(certain) if certain else ():
        readers.pop(table)
        _say_left_out(folder, table)
    if len(readers) <= 1:
        return next(iter(readers.values()), None)
    tables = list(readers)
    of_splits = [table for table in tables if split_in_name(table.name)]
    if 1 < len(of_splits) < len(tables) and _splits_of_tables(of_splits):
        others = ", ".join(table.name for table in tables if table not in of_splits)
        names = ", ".join(table.name for table in of_splits)
        _LOG.warning("%s: taken are %s, not %s; name a table for that", folder, names, others)
        tables = of_splits
    splits = _splits_of_tables(tables)
    if not splits:
        of_parts = table_parts.splits_of_parts(tables)
        if of_parts is None or _begin_alike([readers[table] for table in tables], of_parts):
            raise ValueError(several(folder, tables))
        splits = of_parts
        names = f"{tables[0].name} to {tables[-1].name}"
        _LOG.warning("%s: %d tables are taken for parts of one, %s", folder, len(tables), names)
    return table_parts.reader_of(tables, columns, encoding, splits)


def _begin_alike(readers: Sequence[TableReader], splits: Sequence[str]) -> bool:
    """Whether several tables of one split begin with the same two pictures: they are of different
    captions or days, rather than parts of one."""
    begins = [(split, each.begins_with()) for each, split in zip(readers, splits, strict=True)]
    certain = [begin for begin in begins if len(begin[1]) > 1]
    return len(set(certain)) < len(certain)


def _reader_with_pictures(
    table: pathlib.Path, columns: tuple[str, str], encoding: str
) -> TableReader | None:
    """The reader of a table that names pictures that are there; None if it is another one."""
    try:
        reader = TableReader(table, *columns, encoding=encoding)
        return reader if reader.has_pictures() else None
    except (OSError, ValueError):
        return None


def in_each_folder(
    path: pathlib.Path, columns: tuple[str, str], encoding: str, depth: int
) -> SplitReader | None:
    """A table of any name in each folder that has pictures, as DiffusionDB's parts have them."""
    readers = []
    for folder, names in folders.walk(path, depth):
        if not any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in names):
            continue
        tables = instead.candidates(folder)
        if len(tables) != 1:
            return None
        prefix = "" if folder == path else f"{folder.relative_to(path).as_posix()}/"
        split = split_within(tables[0].relative_to(path))
        try:
            reader = TableReader(tables[0], *columns, split, encoding, prefix)
            if not reader.has_pictures() or _is_of_something_else(reader, folder, encoding):
                return None
        except (OSError, ValueError):
            return None
        readers.append(reader)
    return SplitReader(readers) if readers else None


def _say_left_out(folder: pathlib.Path, table: pathlib.Path) -> None:
    _LOG.warning("%s: %s is left out; name it to import it", folder, table.name)


def _is_of_something_else(reader: TableReader, folder: pathlib.Path, encoding: str) -> bool:
    """Whether a doubtful table is in a folder whose pictures say themselves what they are of."""
    return reader.is_doubtful() and TreeReader(folder, encoding).has_captions_or_classes()


def _splits_of_tables(tables: Sequence[pathlib.Path]) -> list[str]:
    """The split of each table by its name; none if two are of the same or one is of none."""
    splits = splits_of_files(tables)
    return splits if all(splits) and len(set(splits)) == len(splits) else []
