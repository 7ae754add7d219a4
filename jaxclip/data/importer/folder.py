"""Readers of folders of images, with a table of captions or a text file beside each image."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxclip.data import tar_index
from jaxclip.data.importer.items import (
    SPLITS,
    Cursor,
    Item,
    files_stamp,
    from_fields,
    printable,
    split_of,
)
from jaxclip.data.naming import FILE_FIELDS, LABEL_FIELDS, TEXT_FIELDS, find, first_filled
from jaxclip.data.record import BadRecord
from jaxclip.registry import hint

TABLES = tuple(
    f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in ("csv", "tsv", "jsonl")
)
IMAGE_SUFFIXES = frozenset(
    f".{ending}" for ending in (*tar_index.IMAGE_EXTENSIONS, "jpe", "pgm", "pnm")
)


class _Row(NamedTuple):
    """One row of a table: the image file it names and all its values."""

    file: str
    values: dict[str, Any]


class TableReader:
    """Images named by the rows of ``captions.csv``, ``.tsv`` or ``.jsonl``.

    Rows that follow each other and name the same file are captions of the same picture. File names
    are relative to the table's folder. If all of them are in folders that are called like splits
    (``train/…``), these are the splits.

    Args:
      table: the file.
      image_column: name of the column with file names; empty to find it.
      text_column: name of the column with captions; empty to find it.
      split: the split of all rows; empty to tell by their folders.

    Raises:
      ValueError: a CSV without the needed columns.
    """

    def __init__(
        self,
        table: pathlib.Path,
        image_column: str = "",
        text_column: str = "",
        split: str = "",
    ):
        self._table = table
        self._image_column = image_column
        self._text_column = text_column
        self._split = split
        self._size = max(1, table.stat().st_size)
        self._raw: Any = None
        self._delimiter = ","
        if table.suffix != ".jsonl":
            self._delimiter = self._check_header()

    def stamp(self) -> str:
        return files_stamp([self._table])

    def fraction(self) -> float | None:
        return None if self._raw is None else min(1.0, self._raw.tell() / self._size)

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        with open(self._table, "rb") as self._raw:
            rows = self._json_rows() if self._table.suffix == ".jsonl" else self._csv_rows()
            for number, item in enumerate(self._grouped(rows), start=1):
                if number > start.item:
                    yield Cursor(0, number), item
        self._raw = None

    def _grouped(self, rows: Iterator[_Row | BadRecord]) -> Iterator[Item | BadRecord]:
        def file(row: _Row | BadRecord) -> str | None:
            return row.file if isinstance(row, _Row) else None

        for name, group in itertools.groupby(rows, key=file):
            if name is None:
                yield from (row for row in group if isinstance(row, BadRecord))
                continue
            yield self._item(name, [row.values for row in group if isinstance(row, _Row)])

    def _item(self, name: str, rows: list[dict[str, Any]]) -> Item | BadRecord:
        values = dict(rows[0])
        if len(rows) > 1:
            captions: list[Any] = []
            for row in rows:
                text = row.get(self._text_column or first_filled(row, TEXT_FIELDS) or "")
                captions.extend(text if isinstance(text, list) else [text])
            column = self._text_column or first_filled(values, TEXT_FIELDS) or TEXT_FIELDS[0]
            values[column] = captions
        return from_fields(
            values,
            key=f"{self._split}/{name}" if self._split else name,
            image=self._table.parent / name,
            text_column=self._text_column,
            split=self._split or split_of(name),
        )

    def _open(self) -> Any:
        return open(self._table, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _csv(self, file: Any) -> Iterator[list[str]]:
        return csv.reader(file, delimiter=self._delimiter)

    def _check_header(self) -> str:
        """Find the delimiter: the usual one, or that with which the first line names the columns.

        Raises:
          ValueError: no delimiter makes the first line name them.
        """
        usual = "\t" if self._table.suffix == ".tsv" else ","
        problems = []
        for delimiter in (usual, *(each for each in ",\t;|" if each != usual)):
            with self._open() as file:
                header = next(csv.reader(file, delimiter=delimiter), [])
            problem = self._problem([name.strip().lower() for name in header])
            if not problem:
                return delimiter
            problems.append((len(header), problem, header))
        # The one that takes the line apart most is what was meant.
        count, problem, header = max(problems, key=lambda each: each[0])
        tried = "" if count > 1 else " (separated by comma, tab, ; or |)"
        raise ValueError(f"{self._table} has {problem}: its first line is {header}{tried}")

    def _problem(self, names: list[str]) -> str:
        """What the first line lacks; empty if nothing."""
        for what, option, wanted, known in (
            ("the image file", "image", self._image_column, FILE_FIELDS),
            ("the caption", "text", self._text_column, (*TEXT_FIELDS, *LABEL_FIELDS)),
        ):
            if wanted and wanted.lower() not in names:
                return f"no column {wanted!r} (--{option}-column){hint(wanted.lower(), names)}"
            if not wanted and not find(names, known):
                return (
                    f"no column with {what}; say which it is with --{option}-column, or name it "
                    f"one of {', '.join(known)}"
                )
        return ""

    def _csv_rows(self) -> Iterator[_Row | BadRecord]:
        text = io.TextIOWrapper(
            self._raw, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        rows = self._csv(text)
        header = [name.strip().lower() for name in next(rows)]
        column = self._image_column.lower() or find(header, FILE_FIELDS)[0]
        if self._text_column:
            # Other columns are found without regard to letter case.
            spelled = self._text_column.lower()
            header = [self._text_column if name == spelled else name for name in header]
        for number in itertools.count(2):
            try:
                cells = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                yield BadRecord("bad_row", f"row {number}: {error}")
                continue
            if not cells:
                continue  # a blank line
            values = dict(zip(header, cells, strict=False))
            name = values.pop(column, "").strip()
            if len(cells) != len(header) or not name:
                yield BadRecord(
                    "bad_row", f"row {number} has {len(cells)} fields of {len(header)}", name
                )
            else:
                yield _Row(name, values)
        text.detach()

    def _json_rows(self) -> Iterator[_Row | BadRecord]:
        for number, line in enumerate(self._raw, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                yield BadRecord("bad_utf8", f"line {number}: {error}")
                continue
            except (ValueError, RecursionError) as error:
                yield BadRecord("bad_row", f"line {number}: {error}")
                continue
            column = None
            if isinstance(values, dict):
                wanted = self._image_column if self._image_column in values else None
                column = wanted or next(iter(find(values, FILE_FIELDS)), None)
            name = values.pop(column) if column else None
            if not isinstance(name, str) or not name.strip():
                yield BadRecord("bad_row", f"line {number} names no image file")
            else:
                yield _Row(name.strip(), values)


class TreeReader:
    """Images under a folder, each with its captions in a ``.txt`` file of the same name.

    Every line of that file is a caption. If there is no such file at all, and all images are in
    subfolders, these are classes (``cats/1.jpg``), or splits with classes in them
    (``train/cats/1.jpg``). Links to folders are followed.

    Args:
      folder: searched with all folders in it, in alphabetical order.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._classes: bool | None = None

    def has_images(self) -> bool:
        """Whether there is any image at all."""
        return next(self._images(), None) is not None

    def stamp(self) -> str:
        digest = hashlib.sha256()
        for file in self._images():
            digest.update(os.fsencode(file) + b"\0")
        return digest.hexdigest()

    def fraction(self) -> float | None:
        return None

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        self._classes = self._has_classes()
        for number, file in enumerate(self._images(), start=1):
            if number > start.item:
                yield Cursor(0, number), self._item(file)

    def _item(self, file: pathlib.Path) -> Item | BadRecord:
        key = printable(file.relative_to(self._folder).as_posix())
        split = split_of(key)
        if self._classes:
            folders = key.split("/")[:-1]
            return Item(key, file, (), folders[1 if split else 0], split=split)
        try:
            lines = file.with_suffix(".txt").read_bytes().splitlines()
        except OSError:
            return BadRecord("empty_caption", f"no {file.stem}.txt beside it", key)
        return Item(key, file, tuple(lines), split=split)

    def _has_classes(self) -> bool:
        """Whether the folders are classes."""
        for file in self._images():
            parts = file.relative_to(self._folder).parts[:-1]
            if len(parts) <= bool(parts and parts[0].lower() in SPLITS):
                return False
            if file.with_suffix(".txt").exists():
                return False
        return True

    def _images(self) -> Iterator[pathlib.Path]:
        yield from _images(self._folder, frozenset())


def _images(folder: pathlib.Path, above: frozenset[str]) -> Iterator[pathlib.Path]:
    """Image files under a folder, following links, but not to a folder that it is in itself."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir() and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield pathlib.Path(entry.path)
    for entry in entries:
        if entry.is_dir():
            yield from _images(pathlib.Path(entry.path), above | {real})


class SplitReader:
    """Folders with tables of their own, each a split: ``train/metadata.jsonl``, ``test/…``.

    Args:
      readers: one for each, in order.
    """

    def __init__(self, readers: Sequence[TableReader]):
        self._readers = list(readers)
        self._current = 0

    def stamp(self) -> str:
        return "+".join(reader.stamp() for reader in self._readers)

    def fraction(self) -> float | None:
        within = self._readers[self._current].fraction() or 0.0
        return (self._current + within) / len(self._readers)

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        for number in range(start.file, len(self._readers)):
            self._current = number
            first = Cursor(0, start.item if number == start.file else 0)
            for cursor, item in self._readers[number].items(first):
                yield Cursor(number, cursor.item), item
