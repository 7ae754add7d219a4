"""Finds out what a source is and opens its reader."""

from __future__ import annotations

import os
import pathlib

from jaxclip.data import webdataset
from jaxclip.data.importer.folder import TABLES, TableReader, TreeReader
from jaxclip.data.importer.items import Reader

FORMATS = ("folder", "webdataset", "parquet")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ENDINGS = {"webdataset": _TAR_ENDINGS, "parquet": (".parquet",)}


def open_reader(source: str | os.PathLike[str], format: str = "auto") -> Reader:
    """Open a source of records.

    Args:
      source: a folder, a file, or a pattern of files with ``{000..009}``, ``*`` and ``?``.
      format: one of :data:`FORMATS`, or "auto" to tell by the names of the files.

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
        return _folder(path)
    fitting = [pathlib.Path(file) for file in files if file.lower().endswith(_ENDINGS[format])]
    if not path.is_dir() and len(fitting) < len(files):
        fitting = [pathlib.Path(file) for file in files]  # named outright, whatever they are called
    if not fitting:
        raise FileNotFoundError(f"{text!r} holds no file that ends in {_ENDINGS[format]}")
    return _open(format, fitting)


def _open(format: str, files: list[pathlib.Path]) -> Reader:
    if format == "webdataset":
        from jaxclip.data.importer.tars import TarReader

        return TarReader(files)
    from jaxclip.data.importer.parquet import ParquetReader

    return ParquetReader(files)


def _guess(path: pathlib.Path, files: list[str]) -> str:
    if path.is_dir() and any((path / table).is_file() for table in TABLES):
        return "folder"
    kinds = {
        format
        for format, endings in _ENDINGS.items()
        if any(file.lower().endswith(endings) for file in files)
    }
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


def _folder(path: pathlib.Path) -> Reader:
    if path.is_file():
        return TableReader(path)
    tables = [path / table for table in TABLES if (path / table).is_file()]
    if len(tables) > 1:
        names = ", ".join(table.name for table in tables)
        raise ValueError(f"{str(path)!r} holds several tables of captions ({names}); name one")
    if tables:
        return TableReader(tables[0])
    reader = TreeReader(path)
    if not reader.has_images():
        raise FileNotFoundError(f"{str(path)!r} holds no images and none of {', '.join(TABLES)}")
    return reader
