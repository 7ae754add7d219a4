"""What a step works with: passes over the records that are left."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.curate import store as store_lib
from jaxclip.curate.hashing import spread
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.runners import Arrays, Parcel, Runner
from jaxclip.curate.runners.local import Local
from jaxclip.curate.store import INDEX, REASON, STAYS, VERDICT, Stored, View

logger = logging.getLogger("jaxclip")

KEY = "key"
# Records of a part of a shuffle, about.
_PART_RECORDS = 262_144


def add(found: list[Arrays]) -> Arrays:
    """Sum of arrays by name; of integers, so that no order matters."""
    return {name: np.sum([each[name] for each in found], axis=0) for name in found[0]}


def add_counts(found: list[Arrays]) -> Arrays:
    """Sum of counts that are kept as those of the values that occur, ascending."""
    value = np.concatenate([each["value"] for each in found])
    count = np.concatenate([each["count"] for each in found])
    order = np.argsort(value, kind="stable")
    value, firsts = np.unique(value[order], return_index=True)
    total = np.add.reduceat(count[order], firsts) if len(value) else count
    return {"value": value, "count": total}


def concatenate(found: list[Arrays]) -> Arrays:
    """Arrays by name one behind the other, in the order of their array ``index``."""
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    order = np.argsort(arrays[INDEX], kind="stable")
    return {name: array[order] for name, array in arrays.items()}


class Flow:
    """Passes of one step.

    Every pass is kept: a pass that an earlier call of the same work has done is not done again, not
    even in part.

    Args:
      view: the records that the step is given.
      folder: where its passes are kept.
      runner: carries them out.
      seed: of the curation.
      label: of the step, for the log.
      shared: arrays that earlier steps hand on, by name; a step may add some.
    """

    def __init__(
        self,
        view: View,
        folder: str,
        runner: Runner,
        *,
        seed: int,
        label: str,
        shared: dict[str, Stored] | None = None,
    ):
        self.view = view
        self.folder = folder
        self.runner = runner
        self.seed = seed
        self.label = label
        self.shared = {} if shared is None else shared
        self.notes: dict[str, Any] = {}

    def salt(self, purpose: str) -> str:
        """What makes the random numbers of a purpose, by seed."""
        return f"{self.seed}/{purpose}"

    def columns(
        self, name: str, function: Callable[[Rows], Mapping[str, Any]], *, here: bool = False
    ) -> None:
        """Add columns: ``function(rows) -> {name: [n, ...] or Ragged}``.

        Args:
          name: of the pass.
          function: of the records of a shard.
          here: in this process only, which has the accelerator.
        """
        path = f"{self.folder}/{name}"
        runner = Local(1) if here else self.runner
        task = functools.partial(_columns, self.view, function, path)
        self._do(name, path, lambda shards: runner.each(task, shards))
        self.view = self.view.with_pass(path)

    def decide(self, function: Callable[[Rows], Mapping[str, Any]]) -> None:
        """Say who stays; passes after it see those only.

        Args:
          function: rows -> columns with ``reason``: int[n], 0 for a record that stays, else the
            number of a reason of the step, from 1.
        """
        path = f"{self.folder}/{VERDICT}"
        task = functools.partial(_decide, self.view, function, path)
        self._do(VERDICT, path, lambda shards: self.runner.each(task, shards))
        self.view = dataclasses.replace(self.view.with_pass(path), verdict=self.folder)

    def total(
        self,
        name: str,
        function: Callable[[Rows], Arrays],
        merge: Callable[[list[Arrays]], Arrays] = add,
    ) -> Stored:
        """Merge ``function(rows) -> arrays`` over all shards."""
        path = f"{self.folder}/{name}.total.npz"
        if not epath.Path(path).exists():
            began = time.monotonic()
            self.runner.reduce(
                functools.partial(_total, self.view, function),
                merge,
                functools.partial(store_lib.write_arrays, path),
                self.view.shards,
            )
            self._tell(name, len(self.view.shards), began)
        return Stored(path)

    def counts(
        self, name: str, function: Callable[[Rows], np.ndarray], size: int | None = None
    ) -> np.ndarray:
        """How often each whole number occurs in ``function(rows) -> int[e]``.

        Args:
          name: of the pass.
          function: numbers from 0, of the records of a shard.
          size: length of the result; None: up to the largest number.

        Returns:
          int64[size].
        """
        found = self.total(name, functools.partial(_occur, function), add_counts).arrays()
        length = int(found["value"].max(initial=-1)) + 1 if size is None else size
        result = np.zeros(length, np.int64)
        result[found["value"]] = found["count"]
        return result

    def group(
        self,
        name: str,
        emit: Callable[[Rows], tuple[np.ndarray, Arrays]],
        settle: Callable[[np.ndarray, np.ndarray, Arrays], Arrays],
        *,
        fill: Mapping[str, Any] | None = None,
        ragged: Sequence[str] = (),
    ) -> None:
        """Bring together what records say about the same key, and add what comes of it as columns.

        Args:
          name: of the pass.
          emit: rows -> (keys uint64[e], arrays [e, ...]); what is said, one of the arrays being
            ``index`` (of the record that says it).
          settle: (keys uint64[g], starts int64[g + 1], arrays) -> arrays; all that was said about
            some keys, sorted by key and index, and where each key's part begins. What it returns
            has an ``index`` of the record that each line is for.
          fill: dense columns that come of it, with the value for records without any; of several
            values the largest counts.
          ragged: columns with any number of values for a record, sorted and without repetition.
        """
        path = f"{self.folder}/{name}"
        total = self.view.bounds[-1] - self.view.bounds[0]
        parts = max(1, min(4096, -(-total // _PART_RECORDS)))
        task = functools.partial
        self._do(
            name,
            path,
            lambda _: self.runner.shuffle(
                task(_emit, self.view, emit, parts),
                task(_settle, self.view, settle),
                task(_finish, self.view, path, dict(fill or {}), tuple(ragged)),
                self.view.shards,
                parts,
                f"{path}.shuffle",
            ),
        )
        self.view = self.view.with_pass(path)

    def save(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Stored:
        """Arrays that this process makes, kept for the workers."""
        path = f"{self.folder}/{name}.saved.npz"
        if not epath.Path(path).exists():
            began = time.monotonic()
            store_lib.write_arrays(path, make())
            self._tell(name, 1, began)
        return Stored(path)

    def count(self) -> int:
        """Number of records that are left."""
        return int(self.total("count", _count).arrays()["count"])

    def note(self, title: str, value: Any) -> None:
        """Put something into the report: a number, a text, or ``{"head": […], "rows": [[…]]}``."""
        self.notes[title] = value

    def _do(self, name: str, path: str, work: Callable[[list[int]], None]) -> None:
        todo = store_lib.missing(path, self.view.shards)
        if todo:
            began = time.monotonic()
            work(todo)
            self._tell(name, len(todo), began)

    def _tell(self, name: str, shards: int, began: float) -> None:
        seconds = time.monotonic() - began
        logger.info("%s: %s, %d shards, %.1f s", self.label, name, shards, seconds)


def _columns(
    view: View, function: Callable[[Rows], Mapping[str, Any]], path: str, shard: int
) -> None:
    rows = view.rows(shard)
    store_lib.write_arrays(store_lib.file_of(path, shard), {INDEX: rows.index, **function(rows)})


def _decide(
    view: View, function: Callable[[Rows], Mapping[str, Any]], path: str, shard: int
) -> None:
    rows = view.rows(shard)
    columns = dict(function(rows))
    reasons = np.where(view.reasons(shard) == STAYS, STAYS, store_lib.GONE).astype(np.uint8)
    reasons[rows.index - view.bounds[shard]] = columns.pop(REASON)
    store_lib.write_arrays(
        store_lib.file_of(path, shard), {INDEX: rows.index, REASON: reasons, **columns}
    )


def _total(view: View, function: Callable[[Rows], Arrays], shard: int) -> Arrays:
    return function(view.rows(shard))


def _occur(function: Callable[[Rows], np.ndarray], rows: Rows) -> Arrays:
    value, count = np.unique(np.asarray(function(rows), np.int64), return_counts=True)
    return {"value": value, "count": count.astype(np.int64)}


def _count(rows: Rows) -> Arrays:
    return {"count": np.array(len(rows))}


def _emit(
    view: View,
    function: Callable[[Rows], tuple[np.ndarray, Arrays]],
    parts: int,
    shard: int,
) -> Iterable[Parcel]:
    keys, arrays = function(view.rows(shard))
    return list(_parcels(spread(keys, parts), {KEY: np.asarray(keys, np.uint64), **arrays}))


def _settle(
    view: View,
    function: Callable[[np.ndarray, np.ndarray, Arrays], Arrays],
    part: int,
    found: list[Arrays],
) -> Iterable[Parcel]:
    arrays = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    order = np.lexsort((arrays[INDEX], arrays[KEY]))
    arrays = {name: array[order] for name, array in arrays.items()}
    keys = arrays.pop(KEY)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    result = function(keys[starts[:-1]], starts, arrays)
    return list(_parcels(view.shard_of(result[INDEX]), result))


def _parcels(to: np.ndarray, arrays: Arrays) -> Iterable[Parcel]:
    if not len(to):
        return
    order = np.argsort(to, kind="stable")
    ends = np.flatnonzero(np.diff(to[order])) + 1
    for chosen in np.split(order, ends):
        yield int(to[chosen[0]]), {name: array[chosen] for name, array in arrays.items()}


def _finish(
    view: View,
    path: str,
    fill: Mapping[str, Any],
    ragged: Sequence[str],
    shard: int,
    found: list[Arrays],
) -> None:
    index = view.rows(shard).index
    columns: dict[str, Any] = {INDEX: index}
    said = np.concatenate([each[INDEX] for each in found]) if found else np.zeros(0, np.int64)
    place = np.searchsorted(index, said)
    for name, value in fill.items():
        columns[name] = np.full(len(index), value)
        for each in found:
            columns[name] = columns[name].astype(np.result_type(columns[name], each[name]))
        if found:
            np.maximum.at(columns[name], place, np.concatenate([each[name] for each in found]))
    for name in ragged:
        values = np.concatenate([each[name] for each in found]) if found else np.zeros(0, np.int64)
        pairs = np.unique(np.stack([place, values.astype(np.int64)]), axis=1)
        columns[name] = Ragged(pairs[0], pairs[1])
    store_lib.write_arrays(store_lib.file_of(path, shard), columns)
