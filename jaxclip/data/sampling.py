"""Sampling by weights: how often each record comes in an epoch.

``data.sampling`` says where the weights are from:

- ``column(name='weight')``: a number in the records' meta, or a vector of length 1 stored beside
  the data set (:func:`.stored.write_stored`);
- ``file(path)``: an array ``.npy`` [num_records] in the order of the split's records;
- ``curated(path)``: what ``jaxclip curate`` kept in this workdir: the column ``weight`` of its
  table, 1 without it, 0 for what was dropped; of captions those that it kept;
- ``classes(limit, power)``: by the size n of a record's class, min(1, ``limit`` / n), or
  (size of the smallest class / n)^(1 - ``power``). Records without a class have 1.

A record of weight 1 comes once in an epoch, one of weight 0.1 in one epoch of ten, one of weight 0
never. This is systematic sampling: with C the running sum of the weights in the order of storage
and u drawn for each epoch, the epoch's records are those at C = u, u + 1, u + 2, …. So the number
of times a record comes differs from its weight by less than 1 in each epoch, its mean is the
weight, and any place can be looked up. MetaCLIP's balance (2309.16671) as weights is drawn anew
each epoch.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxclip.data import curated as curated_lib
from jaxclip.data import op_syntax, order
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.labels import read_labels, read_numbers
from jaxclip.data.stored import open_stored
from jaxclip.registry import Registry

# (data set, split) -> float64[num_records].
Weigh = Callable[[DataSet, str], np.ndarray]
# Records -> the same with some captions less.
Narrow = Callable[[RecordSource], RecordSource]

SAMPLINGS = Registry("sampling")
_EXAMPLE = "column('weight')"


@dataclasses.dataclass(frozen=True)
class Sampling:
    """An entry of the registry.

    Attributes:
      factory: options -> weights of a split.
      narrow: options -> what leaves out captions of records; None: all stay.
    """

    factory: Callable[..., Weigh]
    narrow: Callable[..., Narrow] | None = None


def _register(
    name: str, narrow: Callable[..., Narrow] | None = None
) -> Callable[[Callable[..., Weigh]], Sampling]:
    return lambda factory: SAMPLINGS.register(name, Sampling(factory, narrow))


@_register("column")
def column(name: str = "weight") -> Weigh:
    """A number of each record."""

    def weigh(data_set: DataSet, split: str) -> np.ndarray:
        kept = open_stored(data_set, split, name)
        if kept is None:
            return read_numbers(data_set, split, name)
        if kept.shape[1:] != (1,):
            raise ValueError(f"{name!r} beside the data set is {list(kept.shape)}, not [n, 1]")
        return np.asarray(kept[:, 0], np.float64)

    return weigh


@_register("file")
def file(path: str = "") -> Weigh:
    """An array of numbers."""
    if not path:
        raise ValueError("path='' must name a file, an array .npy of a number for each record")

    def weigh(data_set: DataSet, split: str) -> np.ndarray:
        try:
            array = np.load(os.path.expanduser(path), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path} can't be read: {error}") from error
        if not isinstance(array, np.ndarray) or array.shape != (data_set.splits[split],):
            shape = list(getattr(array, "shape", ()))
            raise ValueError(f"{path} holds {shape}, [{data_set.splits[split]}] is needed")
        return np.asarray(array, np.float64)

    return weigh


def _curated_texts(path: str = "") -> Narrow:
    return lambda source: curated_lib.narrowed(source, pathlib.Path(path).expanduser())


@_register("curated", _curated_texts)
def curated(path: str = "") -> Weigh:
    """What a curation of these very records kept."""
    if not path:
        raise ValueError("path='' must name a workdir of `jaxclip curate`")

    def weigh(data_set: DataSet, split: str) -> np.ndarray:
        return curated_lib.weights(pathlib.Path(path).expanduser(), data_set.splits[split])

    return weigh


@_register("classes")
def classes(limit: float = 0.0, power: float = 0.0) -> Weigh:
    """By the size of the record's class."""
    if limit < 0 or not 0 <= power <= 1:
        raise ValueError(f"limit={limit} must not be negative, and power={power} be in [0, 1]")
    if limit and power:
        raise ValueError("give either limit or power")

    def weigh(data_set: DataSet, split: str) -> np.ndarray:
        labels = read_labels(data_set, split)
        known = labels >= 0
        if not known.any():
            raise ValueError("no record has a class")
        _, number, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
        size = counts.astype(np.float64)
        share = np.minimum(1.0, limit / size) if limit else (size.min() / size) ** (1.0 - power)
        weights = np.ones(len(labels))
        weights[known] = share[number]
        return weights

    return weigh


def check(written: str) -> None:
    """Raise ValueError if ``data.sampling`` can't be what it is; nothing is read."""
    _weigh(written)


def weights_of(written: str, data_set: DataSet, split: str) -> np.ndarray | None:
    """The weights float64[num_records] that ``data.sampling`` stands for; None for an empty one.

    Raises:
      ValueError: a mistake in it, or weights that can't be.
    """
    weigh = _weigh(written)
    if weigh is None:
        return None
    try:
        weights = weigh(data_set, split)
        bad = ~(np.isfinite(weights) & (weights >= 0))
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(
                f"{int(bad.sum())} of {len(weights)} records have no weight of 0 or more; the "
                f"first is number {first}, which has {weights[first]}"
            )
        if not weights.any():
            raise ValueError(f"all {len(weights)} weights are 0")
    except ValueError as error:
        raise _error(written, data_set, split, error) from error
    return weights


def narrowed(written: str, data_set: DataSet) -> DataSet:
    """The data set with those captions of records that ``data.sampling`` leaves them.

    Raises:
      ValueError: a mistake in it; one in what it names is found when records are asked for.
    """
    check(written)
    spec = _spec(written)
    made = None if spec is None else SAMPLINGS.get(spec.name).narrow
    if spec is None or made is None:
        return data_set
    narrow = made(**spec.options)

    def wrap(split: str, source: RecordSource) -> RecordSource:
        try:
            return narrow(source)
        except ValueError as error:
            raise _error(written, data_set, split, error) from error

    return data_set.wrapped(wrap)


def _error(written: str, data_set: DataSet, split: str, error: ValueError) -> ValueError:
    where = f"split {split!r} of {data_set.in_words}"
    return ValueError(f"data.sampling={written!r} of {where}: {error}")


def _weigh(written: str) -> Weigh | None:
    spec = _spec(written)
    return None if spec is None else op_syntax.make(spec, SAMPLINGS)


def _spec(written: str) -> op_syntax.Spec | None:
    specs = op_syntax.parse(written, SAMPLINGS, _EXAMPLE)
    if len(specs) > 1:
        raise ValueError(f"data.sampling={written!r} must be one of {', '.join(SAMPLINGS.names())}")
    return op_syntax.complete(specs[0], SAMPLINGS, {}) if specs else None


class SampledOrder:
    """Epochs in which records come as often as their weights say, see the module docstring.

    An epoch has as many places as the weights sum up to, rounded; weights are scaled a little for
    their sum to be that whole number. What an epoch draws is shuffled as
    :class:`.order.ShuffledOrder` does it, in windows of neighbours where there are many.

    Args:
      weights: float64[num_records], each at least 0, not all of them 0.
      seed: any non-negative integer.
      window: see :class:`.order.ShuffledOrder`.
      chunk: see there.

    Attributes:
      num_records: of the split.
      epoch_size: places of an epoch.
    """

    def __init__(
        self,
        weights: np.ndarray,
        seed: int,
        window: int = order.DEFAULT_WINDOW,
        chunk: int = order.DEFAULT_CHUNK,
    ):
        self.num_records = len(weights)
        self._ends = np.cumsum(weights, dtype=np.float64)
        total = float(self._ends[-1])
        self.epoch_size = max(1, round(total))
        self._ends *= self.epoch_size / total
        # Rounding must leave no place without a record, nor with one of weight 0 at the end.
        self._ends[int(np.flatnonzero(weights)[-1]) :] = self.epoch_size
        self._seed = seed
        self._shuffled = order.ShuffledOrder(self.epoch_size, seed, window, chunk)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Record indices at places of the endless row.

        Args:
          places: int64[n], each at least 0.

        Returns:
          int64[n], each in [0, num_records).
        """
        places = np.asarray(places, np.int64)
        drawn = self._shuffled(places)
        epochs = places // self.epoch_size
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._records(drawn[chosen] + order.start_of(self._seed, int(epoch)))
        return result

    def replacement(self, place: int, attempt: int) -> int:
        """Record that stands in at a place whose record can't be used, drawn by the weights."""
        where = order.fraction_of(self._seed, place, attempt) * self.epoch_size
        return int(self._records(np.array([where]))[0])

    def _records(self, where: np.ndarray) -> Any:
        """The records at places of the running sum."""
        return np.searchsorted(self._ends, where, side="right")
