"""Rows of tables as people keep them: CSV, TSV, JSON lines, JSON documents, ``name#0<tab>caption``
and ``name caption``.

Any of them may be compressed with gzip, bzip2, xz or Zstandard. UTF-16 (as spreadsheets write it)
and UTF-32 are known by their byte order mark; what else is not UTF-8 wants its encoding named.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxclip.data.importer import annotations as layouts
from jaxclip.data.importer import lists, packed, separated
from jaxclip.data.record import BadRecord

SEPARATED, LINES, DOCUMENTS = (
    (".csv", ".tsv", ".txt", ".token"),
    (".jsonl", ".ndjson", ".jsonlines"),
    (".json",),
)
SUFFIXES = (*SEPARATED, *LINES, *DOCUMENTS)
# Other people's tables that are not read, and what to do.
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")


# What may stand between JSON values in one file.
_BETWEEN = re.compile(r"[\s,]*")


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
    for ending in packed.ENDINGS:
        name = name.removesuffix(ending)
    return pathlib.PurePath(name).suffix


def check(table: pathlib.Path, columns: Columns, encoding: str) -> None:
    """Look at the beginning of a table.

    Raises:
      ValueError: it does not name files and captions (or labels); the message says what it has.
      OSError: it cannot be read.
    """
    try:
        with table.open("rb") as raw:
            data = packed.unpacked(raw)
            begin = data.peek(4)[:4]
            if not begin and suffix(table) not in LINES:
                raise ValueError(f"{table} is empty")
            if begin == b"PK\x03\x04" and suffix(table) not in LINES:
                raise ValueError(f"{table} is a spreadsheet or a ZIP archive; save it as CSV")
            if _is_document(table, data):
                _document(table, data, columns)
            elif suffix(table) in LINES:
                return
            elif _form_of(table, encoding) is None:
                _layout(table, columns, encoding)
    except (EOFError, OSError, *packed.DAMAGE) as error:
        if not packed.is_damage(error):
            raise
        if suffix(table) in LINES:
            return  # each line is on its own
        raise ValueError(f"{table} is damaged: {error}") from error


def is_doubtful(table: pathlib.Path, columns: Columns, encoding: str) -> bool:
    """Whether a table that :func:`check` lets pass may be one of something else.

    That is a list of names without endings, which a line of any text may look like, and what
    :class:`jaxclip.data.importer.separated.Layout` has.
    """
    if suffix(table) not in SEPARATED:
        return False
    form = _form_of(table, encoding)
    return form is lists.BARE if form else _layout(table, columns, encoding).is_doubtful


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
        data = packed.unpacked(raw)
        if _is_document(table, data):
            yield from _document(table, data, columns)
        elif suffix(table) in LINES:
            yield from _json_rows(_lines(data), columns)
        elif form := _form_of(table, encoding):
            text = _text(data, encoding)
            for number, line in enumerate(text, start=1):
                read = form.read(line.strip())
                if line.strip() and (read or not lists.is_comment(line)):
                    problem = f"line {number} is not {form.expected}"
                    yield Row(*read) if read else BadRecord("bad_row", problem)
            text.detach()
        else:
            layout = _layout(table, columns, encoding)
            text = _text(data, encoding)
            for found in separated.rows(text, layout):
                yield found if isinstance(found, BadRecord) else Row(*found)
            text.detach()
    except (EOFError, OSError, *packed.DAMAGE) as error:
        if not packed.is_damage(error):
            raise
        yield BadRecord("corrupted", f"{table} is damaged: {error}")


def _text(data: Any, encoding: str) -> io.TextIOWrapper:
    """The file as text; bytes that are none stay what they are, as lone surrogates, wherever text
    goes on after them."""
    # Never closed by the collector: the file below is its owner's.
    encoding = _marked(data) or encoding
    if codecs.lookup(encoding).name == "utf-8":  # also "utf8" and "UTF-8"
        encoding = "utf-8-sig"
    name = codecs.lookup(encoding).name
    errors = "strict" if name.startswith(("utf-16", "utf-32", "utf-7")) else "surrogateescape"
    return io.TextIOWrapper(data, encoding=encoding, errors=errors, newline="")


def _marked(data: Any) -> str:
    """The encoding that the first bytes of a file name; empty if none, or UTF-8."""
    begin = data.peek(4)[:4]
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark there is a zero beside each ASCII letter.
    zeros = [place for place, byte in enumerate(begin) if not byte]
    return "utf-16-le" if zeros == [1, 3] else "utf-16-be" if zeros == [0, 2] else ""


def _form_of(table: pathlib.Path, encoding: str) -> lists.Form | None:
    """How each line of a list is made, by its first one; None if the file is no list."""
    if suffix(table) not in lists.SUFFIXES:
        return None
    with table.open("rb") as raw:
        text = _text(packed.unpacked(raw), encoding)
        try:
            return lists.form_of(table, text)
        except UnicodeError as error:
            raise ValueError(f"{table}: its first line cannot be read: {error}") from error
        finally:
            text.detach()


def _layout(table: pathlib.Path, columns: Columns, encoding: str) -> separated.Layout:
    with table.open("rb") as raw:
        text = _text(packed.unpacked(raw), encoding)
        try:
            return separated.layout(table, text, suffix(table) == ".tsv", columns)
        finally:
            text.detach()


def _is_document(table: pathlib.Path, data: Any) -> bool:
    """Whether a file is one JSON document, also if it is called as if it were lines of JSON."""
    if suffix(table) in DOCUMENTS:
        return True
    begin = data.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip()
    return suffix(table) in LINES and re.match(rb"\[|\{\s*\n", begin) is not None


def _lines(data: Any) -> Iterator[bytes]:
    """Lines in UTF-8."""
    if not _marked(data):
        yield from data
        return
    text = _text(data, "utf-8")
    for line in text:
        yield line.encode("utf-8", "surrogatepass")
    text.detach()


def _json_rows(lines: Any, columns: Columns) -> Iterator[Row | BadRecord]:
    for number, line in enumerate(lines, start=1):
        # A list of objects has commas behind them.
        line = line.strip().removesuffix(b",")
        if not line:
            continue
        try:
            values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BadRecord("bad_utf8", f"line {number}: {error}")
            continue
        except (ValueError, RecursionError) as error:
            yield BadRecord("bad_row", f"line {number}: {error}")
            continue
        yield from _rows_of(values, f"line {number}", columns)


def _rows_of(value: Any, place: str, columns: Columns) -> Iterator[Row | BadRecord]:
    """What one value of several in a file says."""
    found = layouts.line(value, columns.image)
    if not found:
        yield BadRecord("bad_row", f"{place} {layouts.lacks(value)}")
    yield from (Row(*each) for each in found)


def _several(content: bytes, columns: Columns) -> Iterator[Row | BadRecord]:
    """Rows of several JSON values: one in each line, or one behind the other over several lines."""
    first = content.strip().partition(b"\n")[0].strip().removesuffix(b",")
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(first)
        return _json_rows(io.BytesIO(content), columns)
    text, values, place = content.decode("utf-8-sig", "surrogateescape").strip(), [], 0
    try:
        while place < len(text):
            value, place = json.JSONDecoder().raw_decode(text, place)
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
            values.append(value)
    except (ValueError, RecursionError):
        return _json_rows(io.BytesIO(content), columns)
    return (
        each
        for number, value in enumerate(values, start=1)
        for each in _rows_of(value, f"object {number}", columns)
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
        if "Extra data" in str(error) or suffix(table) in LINES:
            return _several(content, columns)
        raise ValueError(f"{table} is no JSON: {error}") from error
    others = layouts.without_captions(document)
    if others:
        raise ValueError(
            f"{table} has no captions: its annotations hold {others}; import captions_*.json"
        )
    links = layouts.links_in(document)
    if links:
        raise ValueError(
            f"{table} has links ({links!r}) in place of files; download the pictures, say with "
            "img2dataset, and import what that leaves"
        )
    found = layouts.rows(document, columns.image)
    if found is None and suffix(table) in LINES:
        return _json_rows(io.BytesIO(content), columns)
    if found is None:
        raise ValueError(f"{table} {layouts.EXPECTED}")
    return (
        BadRecord("bad_row", f"entry {number} {each}") if isinstance(each, str) else Row(*each)
        for number, each in enumerate(found, start=1)
    )
