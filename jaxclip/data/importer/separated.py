"""Tables whose cells are separated by commas, tabs, ``;`` or ``|``, as people really write them.

Beyond what the ``csv`` module reads: a table without a line of names, lines above that line, a
caption with commas that nobody quoted, and a quote that is never closed.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from jaxclip.data.importer.inline import is_inline
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES, Pictures
from jaxclip.data.naming import (
    ALSO_LABELS,
    FILE_FIELDS,
    ID_FIELDS,
    LABEL_FIELDS,
    LINK_FIELDS,
    TEXT_FIELDS,
    find,
    is_among,
)
from jaxclip.data.record import BadRecord
from jaxclip.registry import hint

_DELIMITERS = ",\t;|"
# Cells that are longer are no text; what Python's module allows is less than some captions.
_LONGEST_CELL = 16 << 20
_NAMED = 12  # of the usual names of a column, in an error
_BOX_NUMBERS = 4
_BOX = re.compile(r"-?[\d.]+( -?[\d.]+){3}")
_WORD = re.compile(r"[^\W\d]{2}")
# What spreadsheets write above a table to say how it is separated.
_SEPARATOR = re.compile(r"sep=(.)\s*$", re.IGNORECASE)


class Wanted(Protocol):
    """Names of the columns with files and with captions; empty to find them by usual names."""

    @property
    def image(self) -> str: ...
    @property
    def text(self) -> str: ...


class Layout(NamedTuple):
    """How a table is to be read.

    Attributes:
      delimiter: between cells.
      header: names of the columns, in small letters but for that of the captions.
      skipped: number of lines above the first row.
      image: the column with files.
      text: the column with captions if the user names it; else empty.
      is_doubtful: it may be a table of something else: no column is called like captions or labels,
        or none has a name and there are more than two.
    """

    delimiter: str
    header: tuple[str, ...]
    skipped: int
    image: str
    text: str
    is_doubtful: bool = False


def layout(table: pathlib.Path, text: io.TextIOWrapper, is_tsv: bool, wanted: Wanted) -> Layout:
    """Look at the first lines of a table.

    Args:
      table: its name, for errors.
      text: of the file, at its beginning.
      is_tsv: tabs are tried first.
      wanted: the columns as the user names them.

    Raises:
      ValueError: no delimiter makes the first line name the columns; the message says what it is.
    """
    usual = "\t" if is_tsv else ","
    delimiters = [usual, *(each for each in _DELIMITERS if each != usual)]
    line, skipped = "", 0
    try:
        for line in text:
            said = _SEPARATOR.match(line)
            if said:
                delimiters = [said[1]]
            elif line.strip():
                break
            skipped += 1
        headers: list[tuple[str, list[str]]] = [
            (each, next(_reader(iter([line]), each), [])) for each in delimiters
        ]
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{table}: its first line cannot be read: {error}") from error
    problems = []
    for delimiter, cells in headers:
        names = _joined([name.strip().lower() for name in cells])
        problem = _lacks(names, wanted)
        if not problem:
            # Other columns are found without regard to letter case.
            spelled = wanted.text.lower()
            header = tuple(wanted.text if spelled and name == spelled else name for name in names)
            image = wanted.image.lower() or _files_in(names)[0]
            is_doubtful = not (wanted.text or find(names, (*TEXT_FIELDS, *LABEL_FIELDS)))
            return Layout(delimiter, header, skipped + 1, image, wanted.text, is_doubtful)
        problems.append((len(cells), problem, cells))
    for delimiter, cells in headers:
        nameless: tuple[str, ...] = ()
        if not (wanted.image or wanted.text):
            nameless = _nameless(cells)
            if not nameless and delimiter == "\t":
                nameless = _by_files(table, cells)
        if nameless:
            is_doubtful = len(nameless) > 2 and not any(map(is_inline, cells))
            return Layout(delimiter, nameless, skipped, "file", "", is_doubtful)
    # The one that takes the line apart most is what was meant.
    count, problem, cells = max(problems, key=lambda each: each[0])
    tried = "" if count > 1 else " (separated by comma, tab, ; or |)"
    first = [cell if len(cell) <= 100 else f"{cell[:97]}..." for cell in cells[:20]]
    if any(map(_is_picture, cells)):
        tried += "; if that is no line of names, put one above it, such as image,caption"
    raise ValueError(f"{table} has {problem}: its first line is {first}{tried}")


def rows(
    text: io.TextIOWrapper, layout: Layout
) -> Iterator[tuple[str, dict[str, Any]] | BadRecord]:
    """The file and the other values of each row of a table, read from its beginning."""
    for _ in range(layout.skipped):
        text.readline()
    number = layout.skipped
    try:
        for cells, line in _cells(text, layout):
            number += 1
            if isinstance(cells, str):
                yield BadRecord("bad_row", cells)
            elif cells:  # else a blank line
                yield _row(cells, line, layout, number)
    except UnicodeError as error:
        # Nothing after it can be told apart.
        yield BadRecord("bad_utf8", f"row {number + 1}: {error} (--encoding)")


def _reader(lines: Iterator[str], delimiter: str, *, strip: bool = True) -> Any:
    # A blank before a quote is common after a comma; Flickr's captions begin with quotes after |.
    strip = strip and delimiter in ",;"
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=strip)


def _lacks(names: Sequence[str], wanted: Wanted) -> str:
    """What a line of columns' names lacks; empty if nothing."""
    for what, option, own, known in (
        ("the image file", "image", wanted.image, (*FILE_FIELDS, *ID_FIELDS)),
        ("the caption", "text", wanted.text, (*TEXT_FIELDS, *LABEL_FIELDS, *ALSO_LABELS)),
    ):
        if own and own.lower() not in names:
            return f"no column {own!r} (--{option}-column){hint(own.lower(), names)}"
        if own or (_files_in(names) if option == "image" else find(names, known)):
            continue
        links = find(names, LINK_FIELDS) or [n for n in names if n.startswith(("http:", "https:"))]
        if option == "image" and links:
            return (
                f"links ({links[0]!r}) in place of files; download the pictures, say with "
                "img2dataset, and import what that leaves"
            )
        return (
            f"no column with {what}; say which it is with --{option}-column, or name it "
            f"one of {', '.join(known[:_NAMED])}, …"
        )
    return ""


def _joined(names: list[str]) -> list[str]:
    """Names of columns, with ``caption_0`` and ``caption_1`` of one name where no other is."""
    bases = [re.sub(r"[\s_]*\d{1,2}$", "", name) for name in names]
    if find(names, TEXT_FIELDS):
        return names
    return [
        base if is_among(base, TEXT_FIELDS) else name
        for base, name in zip(bases, names, strict=True)
    ]


def _files_in(names: Sequence[str]) -> list[str]:
    """Columns that name picture files; where there are no links, one of ids will do."""
    return find(names, FILE_FIELDS if find(names, LINK_FIELDS) else (*FILE_FIELDS, *ID_FIELDS))


def _is_picture(cell: str) -> bool:
    """Whether a cell names a picture file, or is a picture."""
    name = cell.strip()
    if is_inline(name):
        return True
    links = ("http://", "https://")
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(links)


def _nameless(cells: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a table that has none; empty if it can't be told what is what."""
    pictures = [_is_picture(cell) for cell in cells]
    if len(cells) > 2 and sum(map(is_inline, cells)) == 1:
        return _around_picture(cells)
    if len(cells) == 6 and pictures[0] and _BOX.fullmatch(" ".join(cells[2:])):
        # A class and its box, as Tiny ImageNet's val_annotations.txt.
        return ("file", "label", *(f"box_{name}" for name in ("x0", "y0", "x1", "y1")))
    if len(cells) > 2 and sum(pictures) == 1:
        return _with_one_text(cells, pictures)
    if len(cells) != 2 or sum(pictures) != 1:
        return ()
    other = cells[pictures.index(False)].strip()
    if other.isdecimal() and any(map(is_inline, cells)):
        return ()  # more likely the picture's number, as Chinese-CLIP has it, than its class
    return tuple(
        "file" if is_file else "label" if other.isdecimal() else "caption" for is_file in pictures
    )


def _with_one_text(cells: Sequence[str], pictures: Sequence[bool]) -> tuple[str, ...]:
    """Names of the columns of a table with one text beside names of pictures and numbers; four
    numbers are a box, and the text what is in it."""
    others = [cell for cell, is_file in zip(cells, pictures, strict=True) if not is_file]
    texts = [cell for cell in others if _WORD.search(cell)]
    if len(texts) != 1 or len(others) > _BOX_NUMBERS:
        return ()
    return tuple(
        "file" if is_file else "caption" if cell == texts[0] else f"column {i}"
        for i, (cell, is_file) in enumerate(zip(cells, pictures, strict=True))
    )


def _by_files(table: pathlib.Path, cells: Sequence[str]) -> tuple[str, ...]:
    """As :func:`_nameless`, where names of pictures have no endings; there must be such a file."""
    first = cells[0].strip() if len(cells) == 2 else ""
    if not first or " " in first or not Pictures(table, [first]).has_some:
        return ()
    return ("file", "label" if cells[1].strip().isdecimal() else "caption")


def _around_picture(cells: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a table of pictures in base64, as OFA's ``vision_language.tsv``."""
    words = [i for i, cell in enumerate(cells) if not is_inline(cell) and _WORD.search(cell)]
    if not words:
        return ()
    names = ["file" if is_inline(cell) else f"column {i}" for i, cell in enumerate(cells)]
    # Pictures may have letters in their ids, which no blanks stand between.
    spaced = [i for i in words if " " in cells[i].strip()]
    names[(spaced or words)[0]] = "caption"
    return tuple(names)


class _Lines:
    """Lines of a text.

    Attributes:
      taken: those that were taken for the row at hand.
      ended: whether one more was asked for than there are.
    """

    def __init__(self, text: io.TextIOWrapper):
        self._text = text
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._text)
        except StopIteration:
            self.ended = True
            raise
        self.taken.append(line)
        return line


def _cells(text: io.TextIOWrapper, layout: Layout) -> Iterator[tuple[list[str] | str, str]]:
    """The cells of each row, or what is wrong with a line, and its text."""
    lines = _Lines(text)
    reader = _reader(lines, layout.delimiter)
    before = layout.skipped
    while True:
        lines.taken.clear()
        found: list[str] = []
        problem = ""
        try:
            found = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"line {before + 1}: {error}"
        if lines.ended and not problem:
            # The reader asked for more: it is within a quote.
            first = before + len(lines.taken) - len(found[-1].splitlines()) + 1
            problem = f"line {first} opens a quote that never closes: all from there on is lost"
        if any(_is_row(line, layout) for line in lines.taken[0 if problem else 1 :]):
            # A quote that nobody closed has run over whole rows.
            for line in list(lines.taken):
                yield next(_reader(iter([line]), layout.delimiter), []), line
        elif problem:
            yield problem, ""
            for number in range(before + 2, before + len(lines.taken) + 1):
                yield f"line {number} is lost with line {before + 1}", ""
        else:
            yield found, "".join(lines.taken)
        before += len(lines.taken)


def _is_row(line: str, layout: Layout) -> bool:
    cells: list[str] = next(_reader(iter([line]), layout.delimiter), [])
    place = layout.header.index(layout.image)
    return len(cells) == len(layout.header) and _is_picture(cells[place])


def _row(
    cells: list[str], line: str, layout: Layout, number: int
) -> tuple[str, dict[str, Any]] | BadRecord:
    header = layout.header
    for i, cell in enumerate(cells[:-1]):
        if cell.startswith("data:") and cell.endswith(";base64"):
            # The comma of a picture's address that nobody quoted.
            cells = [*cells[:i], f"{cell},{cells[i + 1]}", *cells[i + 2 :]]
            break
    if len(cells) > len(header) and (
        is_among(header[-1], TEXT_FIELDS) or header[-1] == layout.text
    ):
        # Commas of a caption that nobody quoted.
        with contextlib.suppress(csv.Error):
            cells = next(
                _reader(iter(line.splitlines(keepends=True)), layout.delimiter, strip=False)
            )
        last = len(header) - 1
        cells = [*cells[:last], layout.delimiter.join(cells[last:])]
    values: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=False):
        if name not in values:
            values[name] = cell
        elif is_among(name, TEXT_FIELDS) or name == layout.text:
            before = values[name]  # more captions, under the same name
            values[name] = [*(before if isinstance(before, list) else [before]), cell]
        elif not values[name].strip():
            values[name] = cell
    name = values.pop(layout.image, "").strip()
    if len(cells) != len(header) or not name:
        problem = f"has {len(cells)} fields of {len(header)}"
        if len(cells) == len(header):
            problem = "names no file"
        return BadRecord("bad_row", f"row {number} {problem}", name)
    # pandas writes its index into a column without a name.
    kept = {n: v for n, v in values.items() if n and not n.startswith("unnamed: ")}
    for column in (*find(kept, TEXT_FIELDS), layout.text):
        if isinstance(kept.get(column), str):
            kept[column] = _listed(kept[column])
    return name, kept


def _listed(cell: str) -> str | list[str]:
    """The captions in a cell that holds a list as JSON or Python write it; else the cell."""
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]") and text[1:2] in ("'", '"')):
        return cell
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = read(text)
            if isinstance(found, list) and all(isinstance(each, str) for each in found):
                return found
    return cell
