"""Tables whose cells are separated by commas, tabs, ``;`` or ``|``, as people really write them.

Beyond what the ``csv`` module reads: a table without a line of names, lines above that line, a
caption with commas that nobody quoted, and a quote that is never closed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data.importer import column_names, packed
from jaxclip.data.importer.column_names import Wanted
from jaxclip.data.importer.inline import is_inline
from jaxclip.data.naming import LABEL_FIELDS, TEXT_FIELDS, find, is_among
from jaxclip.data.record import BadRecord

_DELIMITERS = ",\t;|"
# Cells that are longer are no text; what Python's module allows is less than some captions.
_LONGEST_CELL = 16 << 20
_LOOKED_AT = 10  # lines, for that of the columns' names
# What spreadsheets write above a table to say how it is separated.
_SEPARATOR = re.compile(r"sep=(.)\s*$", re.IGNORECASE)
# A comma as people set it in a text.
_IN_TEXT = re.compile(r", [^\W\d_]")


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
      ValueError: no delimiter makes a line name the columns; the message says what the first is.
    """
    usual = "\t" if is_tsv else ","
    delimiters = [usual, *(each for each in _DELIMITERS if each != usual)]
    try:
        lines = list(_first_lines(text))
        places = [number for number, line in enumerate(lines) if line.strip()]
        if places and (said := _SEPARATOR.match(lines[places[0]])):
            delimiters = [said[1]]
            places = places[1:]
        found: dict[int, list[tuple[str, list[str]]]] = {
            place: [(each, next(_reader(iter([lines[place]]), each), [])) for each in delimiters]
            for place in places
        }
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{table}: its first line cannot be read: {error}") from error
    # A title or notes may stand above the line of names, but no row.
    for place in [*places[:1], None, *places[1:]]:
        if place is None:
            known = _without_header(table, found, lines, wanted) if places else None
        else:
            known = _with_header(found[place], lines, place, wanted)
        if known is not None:
            return known
    raise ValueError(f"{table} has {_problem(found, places, wanted)}")


def _first_lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Lines among which that of the columns' names is looked for; raises what reading the first of
    them raises."""
    count = 0
    for number in range(_LOOKED_AT):
        try:
            line = next(text, "")
        except (UnicodeError, OSError, *packed.DAMAGE):
            if not number:
                raise
            return
        count += len(line)
        if not line or (number and count > _LONGEST_CELL):
            return
        yield line


def _with_header(
    found: Sequence[tuple[str, list[str]]], lines: Sequence[str], place: int, wanted: Wanted
) -> Layout | None:
    """The layout if a line names the columns; None if it does not."""
    for delimiter, cells in found:
        # A line of names may be marked like a comment.
        spelled = [name.strip().lower() for name in cells]
        if spelled and spelled[0].startswith("#"):
            spelled[0] = spelled[0].lstrip("# ")
        names = column_names.joined(spelled, wanted)
        if column_names.lacks(names, wanted):
            continue
        row: list[str] = []
        with contextlib.suppress(csv.Error):
            row = next(_reader(iter(lines[place + 1 : place + 2]), delimiter), [])
        image = wanted.image.lower() or column_names.of_files(names, row)
        if column_names.has_row_names(names, image, row):
            names = ["", *names]
        # Other columns are found without regard to letter case.
        own = wanted.text.lower()
        header = tuple(wanted.text if own and name == own else name for name in names)
        is_doubtful = not (wanted.text or find(names, (*TEXT_FIELDS, *LABEL_FIELDS)))
        return Layout(delimiter, header, place + 1, image, wanted.text, is_doubtful)
    return None


def _without_header(
    table: pathlib.Path,
    found: Mapping[int, Sequence[tuple[str, list[str]]]],
    lines: Sequence[str],
    wanted: Wanted,
) -> Layout | None:
    """The layout if the first line is a row by which it can be told what is what; else None."""
    if wanted.image or wanted.text:
        return None
    place = min(found)
    for delimiter, cells in found[place]:
        names = column_names.nameless(cells)
        if delimiter == "," and column_names.is_prose(lines[place].rstrip("\r\n").split(",")):
            names = ("file", "caption")
        if delimiter == "," and names.count("caption") > 1 and _IN_TEXT.search(lines[place]):
            names = ()  # the commas may be those of one caption
        if not names and delimiter == "\t":
            names = column_names.by_files(table, cells)
        if names:
            is_doubtful = len(names) > 2 and not any(map(is_inline, cells))
            return Layout(delimiter, names, place, "file", "", is_doubtful)
    return None


def _problem(
    found: Mapping[int, Sequence[tuple[str, list[str]]]], places: Sequence[int], wanted: Wanted
) -> str:
    """Why no line names the columns."""
    if not places:
        return column_names.lacks([], wanted)
    first = next((n for n in places if not found[n][0][1][0].startswith("#")), places[0])
    # The delimiter that takes the line apart most is what was meant.
    cells = max((cells for _, cells in found[first]), key=len)
    problem = column_names.lacks(
        column_names.joined([name.strip().lower() for name in cells], wanted), wanted
    )
    tried = "" if len(cells) > 1 else " (separated by comma, tab, ; or |)"
    shown = [cell if len(cell) <= 100 else f"{cell[:97]}..." for cell in cells[:20]]
    if any(map(column_names.is_picture, cells)):
        tried += "; if that is no line of names, put one above it, such as image,caption"
    return f"{problem}: its first line is {shown}{tried}"


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


def _reader(
    lines: Iterator[str], delimiter: str, *, strip: bool = True, strict: bool = False
) -> Any:
    # A blank before a quote is common after a comma; Flickr's captions begin with quotes after |.
    strip = strip and delimiter in ",;"
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=strip, strict=strict)


def _with_proper_quotes(line: str, layout: Layout) -> str:
    r"""A line whose quotes are those of a table.

    Where it is no row as it is, ``\"`` may stand for ``""`` (Spark, MySQL), or quotes for
    themselves (``a.jpg,"Hello" says a cat``, in tables that nobody quoted).
    """

    def is_row(line: str) -> bool:
        cells: list[str] = next(_reader(iter([line]), layout.delimiter, strict=True), [])
        return len(cells) == len(layout.header)

    try:
        is_row(line)
        return line
    except csv.Error as error:
        is_unquoted = "expected after" in str(error)
    doubled = line.replace('\\"', '""')
    try:
        if doubled != line and is_row(doubled):
            return doubled
    except csv.Error as error:
        if "unexpected end" in str(error):
            return doubled  # the cell goes on over lines
    cells = line.rstrip("\r\n").split(layout.delimiter)
    if not is_unquoted or len(cells) != len(layout.header):
        return line
    quoted = ('"{}"'.format(cell.replace('"', '""')) for cell in cells)
    return layout.delimiter.join(quoted) + "\n"


class _Lines:
    """Lines of the text of a table.

    Attributes:
      taken: those that were taken for the row at hand.
      ended: whether one more was asked for than there are.
    """

    def __init__(self, text: io.TextIOWrapper, layout: Layout):
        self._text = text
        self._layout = layout
        self.taken: list[str] = []
        self.ended = False
        self._is_escaped = False  # the row at hand has backslashes before its quotes

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = next(self._text)
        except StopIteration:
            self.ended = True
            raise
        if not self.taken:
            proper = _with_proper_quotes(line, self._layout) if '"' in line else line
            self._is_escaped = '\\"' in line and '\\"' not in proper
            line = proper
        elif self._is_escaped:  # within a cell that goes on over lines
            line = line.replace('\\"', '""')
        self.taken.append(line)
        return line


def _cells(text: io.TextIOWrapper, layout: Layout) -> Iterator[tuple[list[str] | str, str]]:
    """The cells of each row, or what is wrong with a line, and its text."""
    lines = _Lines(text, layout)
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
        if _has_run_over_rows(lines.taken, bool(problem), layout):
            for line in list(lines.taken):
                line = _with_proper_quotes(line, layout)
                yield next(_reader(iter([line]), layout.delimiter), []), line
        elif problem:
            yield problem, ""
            for number in range(before + 2, before + len(lines.taken) + 1):
                yield f"line {number} is lost with line {before + 1}", ""
        else:
            yield found, "".join(lines.taken)
        before += len(lines.taken)


def _has_run_over_rows(taken: Sequence[str], is_open: bool, layout: Layout) -> bool:
    """Whether a quote that nobody closed has run over whole rows.

    Args:
      taken: the lines that were read as one row.
      is_open: they end within a quote.
      layout: of the table.
    """
    if is_open or len(taken) < 2:
        return is_open and any(_is_row(line, layout) for line in taken)
    *between, last = (_is_row(line, layout) for line in taken[1:])
    return any(between) or (last and not _goes_on_before_the_file(taken, layout))


def _goes_on_before_the_file(taken: Sequence[str], layout: Layout) -> bool:
    """Whether lines are one row with a cell of several lines before that of the file, so that the
    last line has the file, as a whole row would."""
    try:
        cells: list[str] = next(_reader(iter(taken), layout.delimiter, strict=True), [])
    except csv.Error:
        return False
    place = layout.header.index(layout.image)
    return (
        len(cells) == len(layout.header)
        and column_names.is_picture(cells[place])
        and any("\n" in cell or "\r" in cell for cell in cells[:place])
    )


def _is_row(line: str, layout: Layout) -> bool:
    cells: list[str] = next(_reader(iter([line]), layout.delimiter), [])
    place = layout.header.index(layout.image)
    return len(cells) == len(layout.header) and column_names.is_picture(cells[place])


def _row(
    cells: list[str], line: str, layout: Layout, number: int
) -> tuple[str, dict[str, Any]] | BadRecord:
    header = layout.header
    for i, cell in enumerate(cells[:-1]):
        if cell.startswith("data:") and cell.endswith(";base64"):
            # The comma of a picture's address that nobody quoted.
            cells = [*cells[:i], f"{cell},{cells[i + 1]}", *cells[i + 2 :]]
            break
    while len(cells) > len(header) and not cells[-1].strip():
        cells = cells[:-1]  # what stands behind the last delimiter of a line that ends in one
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
    return name, {n: v for n, v in values.items() if n and not n.startswith("unnamed: ")}
