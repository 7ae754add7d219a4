"""Rows of a table for the same picture that do not follow each other."""

from __future__ import annotations

import array
import hashlib
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TypeVar

import numpy as np

_Row = TypeVar("_Row")
_Run = tuple[list[_Row], str | None]

# Bytes of rows that wait in memory for their picture; more of them do so in a temporary file.
_IN_MEMORY = 64 << 20


def gathered(
    rows: Callable[[], Iterable[_Row]],
    file: Callable[[_Row], str | None],
    identity: Callable[[_Row], str],
) -> Iterator[list[_Row]]:
    """Rows for the same picture together, where the first of them stands.

    The rows are read twice, and three times where any stand apart. In memory there are eight bytes
    for each picture, or some forty where any rows stand apart; these wait in a temporary file.

    Args:
      rows: reads them from the beginning; they can be pickled.
      file: the picture of a row; None for one that stands alone. Rows of one file that follow each
        other are of one picture.
      identity: by the first row of those, for which other ones they are of the same picture.

    Yields:
      Rows; none where they were given out before.
    """

    def runs() -> Iterator[_Run[_Row]]:
        for group in _runs(rows(), file):
            yield group, None if file(group[0]) is None else identity(group[0])

    first = _first_places(who for _, who in runs() if who is not None)
    if first is None:
        yield from (group for group, _ in runs())
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as kept:
        offsets = _keep(runs(), first, kept)
        order = np.argsort(first, kind="stable")
        in_order = first[order]
        number = -1
        for group, who in runs():
            number += who is not None
            if who is None or number >= len(first):  # the table has grown meanwhile
                yield group
            elif first[number] != number:
                yield []
            else:
                begin, end = np.searchsorted(in_order, (number, number + 1))
                found = {who: group}
                for place in order[begin + 1 : end]:
                    kept.seek(offsets[place])
                    # Our own rows, from a file without a name that no other program can write.
                    later = pickle.load(kept)
                    found.setdefault(identity(later[0]), []).extend(later)
                yield from found.values()  # several only if their hashes are the same


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


def _first_places(identities: Iterable[str]) -> np.ndarray | None:
    """For each run the number of the first one for the same picture; None if no picture has two.

    The pictures are told apart by hashes, which are the same in each process.
    """
    hashes = array.array("q")
    for who in identities:
        digest = hashlib.blake2b(who.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashes.frombytes(digest)
    values = np.frombuffer(hashes, np.int64)
    in_order = np.sort(values)
    if not (in_order[1:] == in_order[:-1]).any():
        return None
    _, places, inverse = np.unique(values, return_index=True, return_inverse=True)
    return places[inverse]


def _keep(runs: Iterable[_Run[_Row]], first: np.ndarray, kept: IO[bytes]) -> np.ndarray:
    """Write the rows of all but the first place of each picture, and give where they are."""
    offsets = np.zeros(len(first), np.int64)
    named = (group for group, who in runs if who is not None)
    for number, group in zip(range(len(first)), named, strict=False):
        if first[number] != number:
            offsets[number] = kept.tell()
            try:
                pickle.dump(group, kept, pickle.HIGHEST_PROTOCOL)
            except OSError as error:
                place = tempfile.gettempdir()
                raise OSError(error.errno, "rows of the table wait in TMPDIR", place) from error
    return offsets
