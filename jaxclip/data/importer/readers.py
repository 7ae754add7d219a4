"""Finds out what a source is and opens its reader."""

from __future__ import annotations

import os
import pathlib

from jaxclip.data import webdataset
from jaxclip.data.importer.folder import TABLES, SplitReader, TableReader, TreeReader
from jaxclip.data.importer.items import SPLITS, Reader
from jaxclip.data.importer.parquet import ParquetReader
from jaxclip.data.importer.tars import TarReader

FORMATS = ("folder", "webdataset", "parquet")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ENDINGS = {"webdataset": _TAR_ENDINGS, "parquet": (".parquet",)}


def open_reader(
    source: str | os.PathLike[str],
    format: str = "auto",
    image_column: str = "",
    text_column: str = "",
) -> Reader:
    """Open a source of records.

    Args:
      source: a folder, a file, or a pattern of files with ``{000..009}``, ``*`` and ``?``.
      format: one of :data:`FORMATS`, or "auto" to tell by the names of the files.
      image_column: in tables and Parquet, the column with images; empty to find it.
      text_column: in tables and Parquet, the column with captions; empty to find it.

    Returns:
      Its reader.

    Raises:
      FileNotFoundError: there is no such file or folder, or nothing fitting in it.
      ValueError: an unknown format, or one that cannot be told.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format={format!r} must be 'auto', {', '.join(map(repr, FORMATS))}")
    text = os.fspath(source)
    path = pathlib.Path(text)
    if path.is_dir():
        files = sorted(str(file) for file in path.iterdir() if file.is_file())
    else:
        files = webdataset.expand(text)
    if format == "auto":
        format = _guess(path, files)
    if format == "folder":
        return _folder(path, (image_column, text_column))
    fitting = [pathlib.Path(file) for file in files if file.lower().endswith(_ENDINGS[format])]
    if not path.is_dir() and len(fitting) < len(files):
        fitting = [pathlib.Path(file) for file in files]  # named outright, whatever they are called
    if not fitting:
        raise FileNotFoundError(f"{text!r} holds no file that ends in {_ENDINGS[format]}")
    if format == "webdataset":
        if path.is_dir():
            webdataset.check_complete([str(file) for file in fitting])
        return TarReader(fitting)
    return ParquetReader(fitting, image_column, text_column)


def _guess(path: pathlib.Path, files: list[str]) -> str:
    if path.is_dir() and any((path / table).is_file() for table in TABLES):
        return "folder"
    kinds = {
        format
        for format, endings in _ENDINGS.items()
        if any(file.lower().endswith(endings) for file in files)
    }
    if kinds == {"webdataset", "parquet"} and _is_img2dataset(files):
        return "webdataset"
    if len(kinds) == 1:
        return kinds.pop()
    if len(kinds) > 1:
        raise ValueError(
            f"{str(path)!r} holds both tars and Parquet files; say which with --format, or name "
            "the files by a pattern"
        )
    if path.is_dir() or path.suffix in (".csv", ".tsv", ".jsonl"):
        return "folder"
    raise ValueError(
        f"{str(path)!r} is neither a folder nor a table (.csv, .tsv, .jsonl), nor do its names end "
        f"in {', '.join(ending for endings in _ENDINGS.values() for ending in endings)}; say what "
        "it is with --format"
    )


def _is_img2dataset(files: list[str]) -> bool:
    """Whether each Parquet file only says about a tar beside it what is in the tar, too."""
    names = [os.path.basename(file).lower() for file in files]
    tars = {name.partition(".")[0] for name in names if name.endswith(_TAR_ENDINGS)}
    return all(name.partition(".")[0] in tars for name in names if name.endswith(".parquet"))


def _folder(path: pathlib.Path, columns: tuple[str, str]) -> Reader:
    if path.is_file():
        return TableReader(path, *columns)
    table = _table(path)
    if table is not None:
        return TableReader(table, *columns)
    below = {
        folder.name: inner
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder.name.lower() in SPLITS and (inner := _table(folder))
    }
    if below:
        return SplitReader([TableReader(t, *columns, split=name) for name, t in below.items()])
    reader = TreeReader(path)
    if not reader.has_images():
        raise FileNotFoundError(f"{str(path)!r} holds no images and none of {', '.join(TABLES)}")
    return reader


def _table(folder: pathlib.Path) -> pathlib.Path | None:
    """The table of captions in a folder, if there is one.

    Raises:
      ValueError: there are several.
    """
    tables = [folder / table for table in TABLES if (folder / table).is_file()]
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{str(folder)!r} holds several tables of captions ({names}); name one")
    return tables[0] if tables else None
