"""The records of a shard as a step sees them: those that are left, with columns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.curate.hashing import key_hashes, uniforms
from jaxclip.data.record import BadRecord, meta_object

# Columns whose names begin so are a step's own: neither reported nor handed out.
OWN = "_"
# Captions that are left, as pairs (row, number of the caption).
CAPTIONS = "captions"
# What is known of every record from reading it.
READ = ("keys", "texts", "meta", "label", "width", "height", "bytes")


class Ragged(NamedTuple):
    """Any number of values for each row.

    Attributes:
      row: int64[e], ascending.
      value: [e, ...].
    """

    row: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any]], dtype: Any = np.int64) -> Ragged:
        """Out of a list for each row."""
        sizes = [len(each) for each in lists]
        flat = [value for each in lists for value in each]
        return cls(np.repeat(np.arange(len(lists)), sizes), np.array(flat, dtype))

    def lists(self, count: int) -> list[np.ndarray]:
        """The values of each of ``count`` rows."""
        return np.split(self.value, np.searchsorted(self.row, np.arange(1, count)))[:count]

    def chosen(self, rows: np.ndarray) -> Ragged:
        """Those of ascending rows, numbered anew."""
        place = np.searchsorted(rows, self.row)
        here = (place < len(rows)) & (rows[np.minimum(place, len(rows) - 1)] == self.row) \
            if len(rows) else np.zeros(len(self.row), bool)  # fmt: skip
        return Ragged(place[here], self.value[here])


class Rows:
    """Some records and what is known of them.

    Args:
      index: int64[n], ascending: numbers of the records in their split.
      columns: values by name: arrays [n, ...], lists, :class:`Ragged`, or functions that load one
        of these. ``keys`` (list of str) and ``texts`` (list of tuples of str) must be there.
      picture: number of a record -> its encoded picture.
    """

    def __init__(
        self,
        index: np.ndarray,
        columns: Mapping[str, Any],
        picture: Callable[[int], bytes | BadRecord] | None = None,
    ):
        self.index = np.asarray(index, np.int64)
        self._columns = dict(columns)
        self._picture = picture

    @classmethod
    def of(cls, **columns: Any) -> Rows:
        """Rows by hand, numbered from 0; ``keys`` are made up where they are not given."""
        count = len(next(iter(columns.values())))
        columns.setdefault("keys", [f"key{i}" for i in range(count)])
        pictures = columns.pop("pictures", None)
        return cls(np.arange(count), columns, pictures.__getitem__ if pictures else None)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> Any:
        """A column.

        Raises:
          KeyError: there is none; steps say what they want, so this is a bug of a step.
        """
        value = self._columns[name]
        if callable(value):
            value = self._columns[name] = value()
        return value

    def made(self) -> list[str]:
        """Names of the columns that steps have made."""
        return [name for name in self._columns if name not in READ]

    @property
    def keys(self) -> list[str]:
        """Names of the records."""
        return self["keys"]

    def captions(self) -> Ragged:
        """Numbers of the captions that are left."""
        if CAPTIONS in self:
            return self[CAPTIONS]
        return Ragged.of([range(len(each)) for each in self["texts"]])

    @functools.cached_property
    def texts(self) -> list[list[str]]:
        """The captions that are left of each record."""
        left = self.captions().lists(len(self))
        return [
            [texts[number] for number in numbers]
            for texts, numbers in zip(self["texts"], left, strict=True)
        ]

    @functools.cached_property
    def meta(self) -> list[Mapping[str, Any]]:
        """The record's meta, empty where it is no JSON object."""
        return [meta_object(text) for text in self["meta"]]

    def values(self, name: str) -> np.ndarray:
        """float64[n]: a column of numbers, or else the member of that name of each meta.

        NaN where there is none.
        """
        if name in self:
            return np.asarray(self[name], np.float64)
        return np.array([_number(meta.get(name)) for meta in self.meta], np.float64)

    def pictures(self) -> Iterator[bytes | BadRecord]:
        """The encoded pictures, one after the other."""
        assert self._picture is not None
        return (self._picture(int(index)) for index in self.index)

    def hashes(self, salt: str) -> np.ndarray:
        """uint64[n] by key and salt."""
        return key_hashes(self.keys, salt)

    def uniforms(self, salt: str) -> np.ndarray:
        """float64[n] in [0, 1) by key and salt."""
        return uniforms(self.keys, salt)


def _number(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
