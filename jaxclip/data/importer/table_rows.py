"""Rows of tables as people keep them: CSV, TSV, JSON lines, JSON documents, ``name#0<tab>caption``.

Any of them may be compressed with gzip. UTF-16 (as spreadsheets write it) and UTF-32 are known by
their byte order mark; what else is not UTF-8 wants its encoding named.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxclip.data.importer import annotations as layouts
from jaxclip.data.naming import FILE_FIELDS, LABEL_FIELDS, TEXT_FIELDS, find
from jaxclip.data.record import BadRecord
from jaxclip.registry import hint

SEPARATED, LINES, DOCUMENTS = (".csv", ".tsv", ".txt", ".token"), (".jsonl", ".ndjson"), (".json",)
SUFFIXES = (*SEPARATED, *LINES, *DOCUMENTS)

_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
_BREAK = re.compile(r"\r\n|\r|\n")
_DELIMITERS = ",\t;|"
_NUMBERED = re.compile(r"(.+\.\w{3,4})#\d+\t(.*)")  # of Flickr's results.token


class Row(NamedTuple):
    """One row of a table: the image file it names and all its other values."""

    file: str
    values: dict[str, Any]


class Columns(NamedTuple):
    """Names of the columns with files and with captions; empty to find them by usual names."""

    image: str = ""
    text: str = ""


def suffix(table: pathlib.Path) -> str:
    """What kind of table a file is by its name: one of :data:`SUFFIXES`, or anything else."""
    name = table.name.lower()
    return pathlib.PurePath(name.removesuffix(".gz")).suffix


def check(table: pathlib.Path, columns: Columns, encoding: str) -> None:
    """Look at the beginning of a table.

    Raises:
      ValueError: it does not name files and captions (or labels); the message says what it has.
      OSError: it cannot be read.
    """
    try:
        with open(table, "rb") as raw:
            if suffix(table) in DOCUMENTS:
                _document(table, _unpacked(raw, table), columns)
            elif suffix(table) in LINES:
                return
            elif not _is_numbered(table, encoding):
                _delimiter(table, columns, encoding)
    except _DAMAGE as error:
        raise ValueError(f"{table} is damaged: {error}") from error


def rows(
    table: pathlib.Path, raw: Any, columns: Columns, encoding: str
) -> Iterator[Row | BadRecord]:
    """All rows of a table.

    Args:
      table: its name.
      raw: the open file.
      columns: which are which.
      encoding: of its text; JSON has its own.
    """
    try:
        data = _unpacked(raw, table)
        if suffix(table) in DOCUMENTS:
            yield from _document(table, data, columns)
        elif suffix(table) in LINES:
            yield from _json_rows(data, columns)
        elif _is_numbered(table, encoding):
            yield from _numbered_rows(_text(data, encoding))
        else:
            yield from _csv_rows(table, data, columns, encoding)
    except _DAMAGE as error:
        yield BadRecord("corrupted", f"{table} is damaged: {error}")


def _unpacked(raw: Any, table: pathlib.Path) -> Any:
    return gzip.GzipFile(fileobj=raw) if table.suffix.lower() == ".gz" else raw


def _text(data: Any, encoding: str) -> io.TextIOWrapper:
    """The file as text; bytes that are none stay what they are, as lone surrogates, wherever text
    goes on after them."""
    # Never closed by the collector: the file below is its owner's.
    begin = data.read(4)
    data.seek(0)
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif codecs.lookup(encoding).name == "utf-8":  # also "utf8" and "UTF-8"
        encoding = "utf-8-sig"
    name = codecs.lookup(encoding).name
    errors = "strict" if name.startswith(("utf-16", "utf-32", "utf-7")) else "surrogateescape"
    return io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="")


def _is_numbered(table: pathlib.Path, encoding: str) -> bool:
    if suffix(table) not in (".token", ".txt"):
        return False
    with open(table, "rb") as raw:
        text = _text(_unpacked(raw, table), encoding)
        try:
            line = text.readline()
        except UnicodeError as error:
            raise ValueError(f"{table}: its first line cannot be read: {error}") from error
        text.detach()
    return _NUMBERED.match(line) is not None


def _numbered_rows(text: io.TextIOWrapper) -> Iterator[Row | BadRecord]:
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        match = _NUMBERED.match(line.strip())
        if match is None:
            yield BadRecord("bad_row", f"line {number} is not NAME#0<tab>CAPTION")
        else:
            yield Row(match[1], {"caption": match[2]})
    text.detach()


def _delimiter(table: pathlib.Path, columns: Columns, encoding: str) -> str:
    """The delimiter: the usual one, or that with which the first line names the columns.

    Raises:
      ValueError: no delimiter makes the first line name them.
    """
    usual = "\t" if suffix(table) == ".tsv" else ","
    problems = []
    for delimiter in (usual, *(each for each in _DELIMITERS if each != usual)):
        with open(table, "rb") as raw:
            text = _text(_unpacked(raw, table), encoding)
            try:
                header = next(csv.reader(text, delimiter=delimiter), [])
            except (csv.Error, UnicodeError) as error:
                raise ValueError(f"{table}: its first line cannot be read: {error}") from error
            text.detach()
        problem = _lacks([name.strip().lower() for name in header], columns)
        if not problem:
            return delimiter
        problems.append((len(header), problem, header))
    # The one that takes the line apart most is what was meant.
    count, problem, header = max(problems, key=lambda each: each[0])
    tried = "" if count > 1 else " (separated by comma, tab, ; or |)"
    shown = repr(header)[:300]  # a quote that never closes makes all of the file one field
    raise ValueError(f"{table} has {problem}: its first line is {shown}{tried}")


def _lacks(names: Sequence[str], columns: Columns) -> str:
    """What a line of columns' names lacks; empty if nothing."""
    for what, option, wanted, known in (
        ("the image file", "image", columns.image, FILE_FIELDS),
        ("the caption", "text", columns.text, (*TEXT_FIELDS, *LABEL_FIELDS)),
    ):
        if wanted and wanted.lower() not in names:
            return f"no column {wanted!r} (--{option}-column){hint(wanted.lower(), names)}"
        if not wanted and not find(names, known):
            return (
                f"no column with {what}; say which it is with --{option}-column, or name it "
                f"one of {', '.join(known)}"
            )
    return ""


def _csv_rows(
    table: pathlib.Path, data: Any, columns: Columns, encoding: str
) -> Iterator[Row | BadRecord]:
    text = _text(data, encoding)
    lines = _Lines(text)
    cells_of = csv.reader(lines, delimiter=_delimiter(table, columns, encoding))
    header = [name.strip().lower() for name in next(cells_of)]
    column = columns.image.lower() or find(header, FILE_FIELDS)[0]
    if columns.text:
        # Other columns are found without regard to letter case.
        spelled = columns.text.lower()
        header = [columns.text if name == spelled else name for name in header]
    for number in itertools.count(2):
        begin = lines.count
        try:
            cells = next(cells_of)
        except StopIteration:
            break
        except csv.Error as error:
            yield from _lost(begin + 1, lines.count, f"line {begin + 1}: {error}")
            continue
        except UnicodeError as error:
            # Nothing after it can be told apart.
            yield BadRecord("bad_utf8", f"row {number}: {error} (--encoding)")
            break
        if not cells:
            continue  # a blank line
        if lines.ended:  # the reader asked for more: it is within a quote
            whole_lines = len(_BREAK.findall(cells[-1]))
            first = lines.count - whole_lines + cells[-1].endswith(("\r", "\n"))
            why = f"line {first} opens a quote that never closes: all from there on is lost"
            yield from _lost(begin + 1, lines.count, why)
            break
        values: dict[str, Any] = dict(zip(header, cells, strict=False))
        name = values.pop(column, "").strip()
        if len(cells) != len(header) or not name:
            yield BadRecord(
                "bad_row", f"row {number} has {len(cells)} fields of {len(header)}", name
            )
        else:
            yield Row(name, values)
    text.detach()


def _lost(first: int, last: int, why: str) -> Iterator[BadRecord]:
    """A bad row for each of some lines, so that what is lost is counted."""
    yield BadRecord("bad_row", why)
    for line in range(first + 1, last + 1):
        yield BadRecord("bad_row", f"line {line} is lost with line {first}")


class _Lines:
    """The lines of a text.

    Attributes:
      count: how many were read.
      ended: whether one more was asked for than there are.
    """

    def __init__(self, text: Iterable[str]):
        self._lines = iter(text)
        self.count = 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._lines)
        except StopIteration:
            self.ended = True
            raise
        self.count += 1
        return line


def _json_rows(data: Any, columns: Columns) -> Iterator[Row | BadRecord]:
    for number, line in enumerate(data, start=1):
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
        row = layouts.row(values, columns.image)
        yield (
            BadRecord("bad_row", f"line {number} names no image file") if row is None else Row(*row)
        )


def _document(table: pathlib.Path, data: Any, columns: Columns) -> Iterator[Row | BadRecord]:
    """Rows of a JSON document, or of lines that are called so.

    Raises:
      ValueError: it is neither, or names no files.
    """
    content = data.read()
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            return _json_rows(io.BytesIO(content), columns)
        raise ValueError(f"{table} is no JSON: {error}") from error
    found = layouts.rows(document, columns.image)
    if found is None:
        raise ValueError(f"{table} {layouts.EXPECTED}")
    return (
        BadRecord("bad_row", f"entry {number} names no image file") if each is None else Row(*each)
        for number, each in enumerate(found, start=1)
    )
