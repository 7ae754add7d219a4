"""Readers of folders of images, with a table of captions or a text file beside each image."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxclip.data import webdataset
from jaxclip.data.importer.items import (
    FILE_FIELDS,
    TEXT_FIELDS,
    Cursor,
    Item,
    files_stamp,
    first_of,
    from_fields,
    printable,
)
from jaxclip.data.record import BadRecord

TABLES = tuple(
    f"{stem}.{kind}" for stem in ("captions", "metadata") for kind in ("csv", "tsv", "jsonl")
)
IMAGE_SUFFIXES = frozenset(
    f".{ending}" for ending in (*webdataset.IMAGE_EXTENSIONS, "jpe", "pgm", "pnm")
)


class _Row(NamedTuple):
    """One row of a table: the image file it names and all its values."""

    file: str
    values: dict[str, Any]


class TableReader:
    """Images named by the rows of ``captions.csv``, ``.tsv`` or ``.jsonl``.

    Rows that follow each other and name the same file are captions of the same picture. File names
    are relative to the table's folder.

    Args:
      table: the file.

    Raises:
      ValueError: a CSV without the needed columns.
    """

    def __init__(self, table: pathlib.Path):
        self._table = table
        self._size = max(1, table.stat().st_size)
        self._raw: Any = None
        if table.suffix != ".jsonl":
            with self._open() as file:
                self._check_header(next(self._csv(file), []))

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
                text = row.get(first_of(row, TEXT_FIELDS) or "")
                captions.extend(text if isinstance(text, list) else [text])
            values[first_of(values, TEXT_FIELDS) or TEXT_FIELDS[0]] = captions
        return from_fields(values, key=name, image=self._table.parent / name)

    def _open(self) -> Any:
        return open(self._table, encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _csv(self, file: Any) -> Iterator[list[str]]:
        return csv.reader(file, delimiter="\t" if self._table.suffix == ".tsv" else ",")

    def _check_header(self, header: list[str]) -> None:
        names = {name.strip().lower(): "" for name in header}
        for what, known in (("image file", FILE_FIELDS), ("caption", TEXT_FIELDS)):
            if first_of(names, known) is None:
                raise ValueError(
                    f"{self._table} has no column with the {what}: its first line is {header}, "
                    f"which should name one of {', '.join(known)}"
                )

    def _csv_rows(self) -> Iterator[_Row | BadRecord]:
        text = io.TextIOWrapper(
            self._raw, encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        rows = self._csv(text)
        header = [name.strip().lower() for name in next(rows)]
        column = first_of(dict.fromkeys(header), FILE_FIELDS) or ""
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
            column = first_of(values, FILE_FIELDS) if isinstance(values, dict) else None
            name = values.pop(column) if column else None
            if not isinstance(name, str) or not name.strip():
                yield BadRecord("bad_row", f"line {number} names no image file")
            else:
                yield _Row(name.strip(), values)


class TreeReader:
    """Images under a folder, each with its captions in a ``.txt`` file of the same name.

    Every line of that file is a caption.

    Args:
      folder: searched with all folders in it, in alphabetical order.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

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
        for number, file in enumerate(self._images(), start=1):
            if number > start.item:
                yield Cursor(0, number), self._item(file)

    def _item(self, file: pathlib.Path) -> Item | BadRecord:
        key = printable(file.relative_to(self._folder).as_posix())
        try:
            lines = file.with_suffix(".txt").read_bytes().splitlines()
        except OSError:
            return BadRecord("empty_caption", f"no {file.stem}.txt beside it", key)
        return Item(key, file, tuple(lines))

    def _images(self) -> Iterator[pathlib.Path]:
        for folder, subfolders, files in os.walk(self._folder):
            subfolders.sort()
            for name in sorted(files):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    yield pathlib.Path(folder, name)
