"""Rows of a table for the same picture that do not follow each other."""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

_Row = TypeVar("_Row")

# So many rows are kept in memory; pictures whose rows come after them are those of another record.
_MAX_ROWS = 2_000_000


def gathered(
    rows: Callable[[], Iterable[_Row]],
    file: Callable[[_Row], str | None],
    identity: Callable[[_Row], str],
) -> Iterator[list[_Row]]:
    """Rows for the same picture together, where the first of them stands.

    The rows are read up to three times; in memory there are eight bytes for each picture, and the
    rows that do not stand behind another one for the same picture.

    Args:
      rows: reads them from the beginning.
      file: the picture of a row; None for one that stands alone. Rows of one file that follow each
        other are of one picture.
      identity: by the first row of those, for which other ones they are of the same picture.

    Yields:
      Rows; none where they were given out before.
    """
    later = _later(rows, file, identity)
    given = set(later)
    for group in _runs(rows(), file):
        who = _identity(group, file, identity)
        if who in later:
            yield group + later.pop(who)
        else:
            yield [] if who in given else group


def _runs(rows: Iterable[_Row], file: Callable[[_Row], str | None]) -> Iterator[list[_Row]]:
    """Rows of one file that follow each other; those that stand alone one by one."""
    group: list[_Row] = []
    last: str | None = None
    for row in rows:
        name = file(row)
        if group and (name is None or name != last):
            yield group
            group = []
        group.append(row)
        last = name
    if group:
        yield group


def _identity(
    group: list[_Row], file: Callable[[_Row], str | None], identity: Callable[[_Row], str]
) -> str | None:
    return None if file(group[0]) is None else identity(group[0])


def _later(
    rows: Callable[[], Iterable[_Row]],
    file: Callable[[_Row], str | None],
    identity: Callable[[_Row], str],
) -> dict[str, list[_Row]]:
    """For each picture whose rows stand in several places the rows of all but the first place."""
    hashes = array.array("q")
    for group in _runs(rows(), file):
        who = _identity(group, file, identity)
        if who is not None:
            hashes.append(hash(who))
    values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
    several = set(values[counts > 1].tolist())
    found: dict[str, list[_Row]] = {}
    kept = 0
    for group in _runs(rows(), file) if several else ():
        who = _identity(group, file, identity)
        if who is None or hash(who) not in several:
            continue
        if who in found:
            found[who] += group
            kept += len(group)
        elif kept < _MAX_ROWS:
            found[who] = []
    return {who: rest for who, rest in found.items() if rest}
