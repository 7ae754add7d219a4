"""What makes one array of a batch: the base of all columns, and what they are given.

A column belongs to one key of a batch specification. It says what a data set must have, looks once
at each record that is read (and keeps what it needs of it), and makes its array for the rows of a
batch. What it draws by chance comes from a stream of its own, so that adding a column changes no
other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from jaxclip.data import order
from jaxclip.data.dataset import DataSet
from jaxclip.data.decoded_cache import Loaded
from jaxclip.data.record import REASONS, BadRecord, Record, meta_object
from jaxclip.fields import BatchSpec, Field

F = TypeVar("F", bound=Field)

# The keys of the pair that every contrastive run has. Their draws come first in the unnamed
# stream: one for the caption, the others for the image ops.
IMAGE, TEXT = "image", "text"
_CAPTION_DRAWS = 1

# So many records are looked at to find out what a data set has.
_SAMPLE_START, _SAMPLE_PLACES, _SAMPLE_RUN = 32, 8, 4


@dataclasses.dataclass(frozen=True)
class Context:
    """What columns are built from.

    Attributes:
      config: the data config, complete.
      data_set: the data set.
      spec: the whole specification of the batch.
      seed: of the run.
    """

    config: Mapping[str, Any]
    data_set: DataSet
    spec: BatchSpec
    seed: int = 0

    @property
    def split(self) -> str:
        """The split that is trained on."""
        return self.config["train_split"]

    def __str__(self) -> str:
        return f"split {self.split!r} of data set {self.data_set.name!r}"

    @functools.cached_property
    def texts_of(self) -> Callable[[Record], tuple[str, ...]]:
        """The captions of a record in the configured languages."""
        return self.data_set.texts_of(self.config["languages"])

    def sample(self) -> Iterator[Candidate]:
        """Readable records of the split: some of its start, then some of all over it."""
        for index, record in self._looked_at():
            if isinstance(record, Record):
                yield Candidate(index, record)

    def check_readable(self) -> None:
        """Raise ValueError if no record that is looked at can be read."""
        first: BadRecord | None = None
        count = 0
        for _, record in self._looked_at():
            if isinstance(record, Record):
                return
            first, count = first or record, count + 1
        if first is not None:
            raise ValueError(
                f"{self}: none of {count} records looked at can be used; the first is "
                f"{first.reason}: {first.detail or REASONS[first.reason]}"
            )

    def _looked_at(self) -> Iterator[tuple[int, Record | BadRecord]]:
        source = self.data_set.source(self.split)
        start = range(min(_SAMPLE_START, len(source)))
        firsts = np.linspace(0, max(0, len(source) - _SAMPLE_RUN), _SAMPLE_PLACES).astype(int)
        spread = {i for first in firsts for i in range(first, first + _SAMPLE_RUN)}
        for index in itertools.chain(start, sorted(spread - set(start))):
            if index < len(source):
                yield index, source[index]


class Candidate:
    """A record that is looked at.

    Attributes:
      index: its number in the split.
      record: the record, with meta.
    """

    def __init__(self, index: int, record: Record):
        self.index = index
        self.record = record

    @functools.cached_property
    def meta(self) -> Mapping[str, Any]:
        """The record's meta, empty if it is no JSON object."""
        return meta_object(self.record.meta)

    def bad(self, reason: str, detail: str) -> BadRecord:
        """Why it can't be used."""
        return BadRecord(reason, detail, self.record.key)


@dataclasses.dataclass
class Rows:
    """The rows of a batch that are made here.

    Attributes:
      seed: of the run.
      places: int64[b] in the endless row of training examples.
      loaded: the record of each.
      views: uint8[b, S, S, 3] by key.
      captions: the captions of ``text``, one of each row, once they are drawn.
      texts: texts of each column of token ids, those of a row after each other, once drawn.
      batch: its number.
      made: what columns make once for each other.
    """

    seed: int
    places: np.ndarray
    loaded: list[Loaded]
    views: Mapping[str, np.ndarray]
    captions: list[str]
    texts: dict[str, list[str | None]] = dataclasses.field(default_factory=dict)
    batch: int = 0
    made: dict[str, Any] = dataclasses.field(default_factory=dict)


def draws(seed: int, key: str, places: np.ndarray, count: int) -> np.ndarray:
    """The random numbers of a column: float32[n, count], by (seed, key, place, number) alone."""
    if key == IMAGE:
        return order.uniforms(seed, places, _CAPTION_DRAWS + count)[:, _CAPTION_DRAWS:]
    if key != TEXT or count <= _CAPTION_DRAWS:
        return order.uniforms(seed, places, count, "" if key == TEXT else key)
    first = order.uniforms(seed, places, _CAPTION_DRAWS)
    return np.concatenate(
        [first, order.uniforms(seed, places, count - _CAPTION_DRAWS, key)], axis=1
    )


class Column(Generic[F]):
    """Makes the array of one key.

    Args:
      key: of the batch.
      field: what is asked for.
      context: what it is made from.

    Raises:
      ValueError: an option that can't be.
    """

    def __init__(self, key: str, field: F, context: Context):
        self.key = key
        self.field = field
        self.context = context

    def check(self) -> None:
        """Raise ValueError if the data set can't have what is asked for."""

    def examine(self, candidate: Candidate) -> Any | BadRecord:
        """What to keep of a record, or why it can't be used; None keeps nothing."""
        return None

    def make(self, rows: Rows) -> np.ndarray:
        """The array for these rows."""
        raise NotImplementedError

    def draws(self, rows: Rows, count: int) -> np.ndarray:
        """float32[b, count] of this column's own random numbers."""
        return draws(rows.seed, self.key, rows.places, count)

    def find(self, has: Callable[[Candidate], bool], what: str) -> None:
        """Raise ValueError if no record that is looked at has something."""
        seen = 0
        for candidate in self.context.sample():
            if has(candidate):
                return
            seen += 1
        if seen:
            raise ValueError(f"{self.context} has {what}: none of {seen} records looked at has")


class TextColumn(Column[F]):
    """Makes token ids; the batch maker runs the tokenizer, once for all columns."""

    @property
    def length(self) -> int:
        """Tokens in a row, 0 for the tokenizer's own number."""
        return 0

    def texts(self, rows: Rows) -> list[str | None]:
        """Texts of all rows, those of a row after each other; None becomes a row of padding."""
        raise NotImplementedError

    def make(self, rows: Rows) -> np.ndarray:
        raise TypeError("texts are made by the batch maker")
