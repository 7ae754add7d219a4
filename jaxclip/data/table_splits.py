"""What is said of Parquet and Arrow files behind their name, and splits of them by a column.

``parquet:PATTERN?split=COLUMN``, ``parquet:PATTERN?image=COLUMN&text=COLUMN``, or all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.data.naming import split_named
from jaxclip.registry import hint

_PART = r"(?:split|images?|texts?)=[^?&]+"
_QUERY = re.compile(rf"(.*)\?({_PART}(?:&{_PART})*)", re.DOTALL)
# More values than this are no splits: the column holds something else.
_MAX_SPLITS = 100


class Query(NamedTuple):
    """Names of columns: of splits, images and captions; empty where none is named."""

    split: str = ""
    image: str = ""
    texts: str = ""


def parse(name: str) -> tuple[str, Query]:
    """The files and the columns of ``PATTERN?split=COLUMN&image=COLUMN&text=COLUMN``.

    A ``?`` by itself belongs to the pattern.
    """
    found = _QUERY.fullmatch(name)
    if not found:
        return name, Query()
    said = dict(part.split("=", 1) for part in found[2].split("&"))
    image, texts = (said.get(each, said.get(f"{each}s", "")) for each in ("image", "text"))
    return found[1], Query(said.get("split", ""), image, texts)


def check(file: object, column: str, names: Sequence[str]) -> None:
    """Raise ValueError if a file has no such column."""
    if column not in names:
        raise ValueError(
            f"{file} has no column {column!r} (?split=), but {', '.join(names)}"
            f"{hint(column, names)}"
        )


def divide(found: Sequence[tuple[str, tuple[list[Any], Any]]], column: str) -> dict[str, list[Any]]:
    """Groups of rows by split.

    Args:
      found: of each file its split, its :class:`jaxclip.data.table_source.Group`, and its column of
        splits as one array of Arrow.
      column: the column's name; empty if the files alone decide.

    Raises:
      ValueError: its values are no texts or numbers, or too many.
    """
    splits: dict[str, list[Any]] = {}
    for split, (groups, values) in found:
        for group in groups:
            if not column:
                splits.setdefault(split, []).append(group)
                continue
            of_rows = values.slice(group.first, group.rows)
            for name, rows in _rows_by_split(group.file, of_rows, split):
                splits.setdefault(name, []).append(group._replace(rows=len(rows), chosen=rows))
    return splits


def _rows_by_split(file: object, values: Any, default: str) -> Iterator[tuple[str, np.ndarray]]:
    """The splits of rows, each with the numbers of its rows, in the order of the rows.

    Args:
      file: where they are, for errors.
      values: the column, of Arrow, in one piece.
      default: the split of rows that name none.
    """
    import pyarrow

    if pyarrow.types.is_nested(values.type):
        raise ValueError(f"{file}: a column of {values.type} (?split=) names no splits")
    coded = values.dictionary_encode()
    names = [_name(value, default) for value in coded.dictionary.to_pylist()]
    if len(set(names)) > _MAX_SPLITS:
        raise ValueError(
            f"{file}: the column of splits (?split=) has {len(set(names))} values, such as "
            f"{names[0]!r} and {names[1]!r}"
        )
    codes = coded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    names.append(default)
    for name in dict.fromkeys(names):
        same = [code for code, each in enumerate(names) if each == name]
        rows = np.flatnonzero(np.isin(codes, same)).astype(np.int32)
        if len(rows):
            yield name, rows


def _name(value: Any, default: str) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return split_named(text) or text.strip() or default
