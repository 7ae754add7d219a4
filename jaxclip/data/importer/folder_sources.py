"""Finds out how a folder says what its pictures show: a table, several, or files beside them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from jaxclip.data import file_kinds
from jaxclip.data.importer import archives, folders, instead, other_tables, table_parts
from jaxclip.data.importer.folder import TreeReader
from jaxclip.data.importer.items import Reader
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.importer.table import SplitReader, TableReader
from jaxclip.data.naming import is_hidden, split_within, splits_of_files

# Tables that are taken for one whatever is in them.
TABLES = (
    *(f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in ("csv", "tsv", "jsonl")),
    "captions.json",
)
# How many folders below one are looked into for tables, tars and Parquet files.
DEEPEST = 3


def open_folder(
    path: pathlib.Path, columns: tuple[str, str], encoding: str, named: Sequence[str]
) -> Reader:
    """The reader of a folder of pictures, of one table, or of several that a pattern names.

    Args:
      path: the folder, table or pattern.
      columns: names of those with files and captions in tables; empty to find them.
      encoding: of tables that are not JSON.
      named: the files that a pattern stands for.

    Raises:
      FileNotFoundError: there is nothing of use.
      ValueError: a table is none, or it cannot be told which of several is meant.
    """
    if path.is_file():
        if path.suffix.lower() in file_kinds.ARCHIVES:
            raise ValueError(f"{str(path)!r} is an archive{instead.what_instead(path)}")
        return _table_file(path, columns, encoding)
    if not path.is_dir():
        return _tables([pathlib.Path(each) for each in named], columns, encoding)
    table = _table(path)
    if table is not None:
        return instead.with_pictures(TableReader(table, *columns, encoding=encoding), table)
    below = [
        TableReader(
            table,
            *columns,
            split=split_within(table.relative_to(path)),
            encoding=encoding,
            prefix=f"{folder.relative_to(path).as_posix()}/",
        )
        for folder, _ in folders.walk(path, DEEPEST)
        if folder != path and (table := _table(folder))
    ]
    if below:
        return SplitReader(below)
    others = other_tables.in_folder(path, columns, encoding)
    if not others and (only := _only_folder(path)):
        others = other_tables.in_folder(only, columns, encoding)
    others = others or other_tables.in_each_folder(path, columns, encoding, DEEPEST)
    if others:
        return others
    reader = TreeReader(
        path,
        encoding,
        instead.what_instead(path),
        lambda: instead.no_table_but_texts(path, encoding),
        lambda: instead.no_table(path, encoding),
    )
    if not reader.has_images():
        raise FileNotFoundError(
            f"{str(path)!r} holds no images, no tars or Parquet files, and no table that names "
            f"images beside it (say {TABLES[0]})"
            + (
                instead.what_instead(path)
                or instead.no_table(path, encoding)
                or instead.what_within(path)
            )
        )
    return reader


def _tables(files: Sequence[pathlib.Path], columns: tuple[str, str], encoding: str) -> Reader:
    """Tables that a pattern names."""
    tables = [file for file in files if file.stat().st_size] or list(files)
    reader = table_parts.reader_of(tables, columns, encoding, splits_of_files(tables))
    if not reader.has_pictures():
        instead.with_pictures(TableReader(tables[0], *columns, encoding=encoding), tables[0])
    return reader


def _table_file(table: pathlib.Path, columns: tuple[str, str], encoding: str) -> Reader:
    """A table whose pictures are beside it, perhaps in archives."""
    reader = TableReader(table, *columns, encoding=encoding)
    beside = None if reader.has_pictures() else archives.beside(table, encoding)
    if beside:
        unpacked = TableReader(beside[0], *columns, encoding=encoding)
        if unpacked.has_pictures():
            return archives.ArchiveReader(unpacked, beside[1])
    return instead.with_pictures(reader, table)


def _only_folder(path: pathlib.Path) -> pathlib.Path | None:
    """The folder that stands alone in one without pictures (``fgvc-aircraft-2013b/data``)."""
    entries = [each for each in path.iterdir() if not is_hidden(each.name)]
    below = [each for each in entries if each.is_dir()]
    pictures = any(each.suffix.lower() in IMAGE_SUFFIXES for each in entries)
    return below[0] if len(below) == 1 and not pictures else None


def _table(folder: pathlib.Path) -> pathlib.Path | None:
    """The table of captions in a folder, if there is one with a usual name.

    Raises:
      ValueError: there are several.
    """
    tables = [folder / table for table in TABLES if (folder / table).is_file()]
    if len(tables) > 1:
        raise ValueError(other_tables.several(folder, tables))
    return tables[0] if tables else None
