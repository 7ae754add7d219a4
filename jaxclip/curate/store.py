"""What is known of the records on disk: one file for each pass and shard, whole or not there.

A shard is a run of records of the split. Every step has a folder whose name ends in a digest of all
that its results depend on (the source, the steps up to it and their options), so that what was done
is used again, and never for anything else. Files appear under their names when they are whole.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxclip.curate import source as source_lib
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.data import decode
from jaxclip.data.record import BadRecord

Arrays = dict[str, np.ndarray]

# Name of the pass in which a step says which records stay.
VERDICT = "verdict"
REASON = "reason"
INDEX = "index"
ROW = "/row"
# Reasons of a verdict: stays; dropped by an earlier step. What lies between is the step's own.
STAYS, GONE = 0, 255


def write_bytes(path: os.PathLike[str] | str, data: bytes) -> None:
    """Write a file whole or not at all; two that write the same one do not mix."""
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    temporary.write_bytes(data)
    temporary.replace(target)


def write_arrays(path: os.PathLike[str] | str, columns: Mapping[str, Any]) -> None:
    """Write columns as an ``npz`` file; a :class:`Ragged` is two arrays of it.

    Raises:
      TypeError: a column holds neither numbers nor text.
    """
    arrays: Arrays = {}
    for name, value in columns.items():
        if isinstance(value, Ragged):
            arrays[name + ROW], arrays[name] = value
        else:
            arrays[name] = np.asarray(value)
    for name, array in arrays.items():
        if array.dtype == object:
            raise TypeError(f"column {name!r} is no array of numbers or text")
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_bytes(path, stream.getvalue())


def read_arrays(path: os.PathLike[str] | str) -> Any:
    """An ``npz`` file; its arrays are read when they are asked for."""
    text = os.fspath(path)
    if "://" in text:
        return np.load(io.BytesIO(epath.Path(text).read_bytes()), allow_pickle=False)
    return np.load(text, allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class Stored:
    """Arrays in a file that workers read; each process does it once."""

    path: str

    def arrays(self) -> Arrays:
        """The arrays by name."""
        return _load_whole(self.path)


@functools.lru_cache(maxsize=8)
def _load_whole(path: str) -> Arrays:
    with read_arrays(path) as file:
        return {name: file[name] for name in file.files}


@dataclasses.dataclass(frozen=True)
class View:
    """The records after some steps and passes: what a worker needs to know to get at them.

    Attributes:
      source: name of the data set.
      split: of it.
      bounds: where shards begin, and the end of the last one.
      base: folder of the first pass over the source.
      passes: ``folder/name`` of passes whose columns are there, in their order.
      verdict: folder of the step whose verdict counts.
    """

    source: str
    split: str
    bounds: tuple[int, ...]
    base: str
    passes: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def shards(self) -> range:
        """Numbers of all shards."""
        return range(len(self.bounds) - 1)

    def with_pass(self, path: str) -> View:
        """With the columns of one more pass."""
        return dataclasses.replace(self, passes=(*self.passes, path))

    def rows(self, shard: int) -> Rows:
        """The records of a shard that are left."""
        first, end = self.bounds[shard], self.bounds[shard + 1]
        reason = self.reasons(shard)
        left = np.flatnonzero(reason == STAYS)
        columns: dict[str, Any] = base_columns(self.base, shard, left)
        index = np.arange(first, end)[left]
        for path in self.passes:
            columns.update(_columns(file_of(path, shard), index))
        return Rows(index, columns, functools.partial(source_lib.picture, self.source, self.split))

    def reasons(self, shard: int) -> np.ndarray:
        """uint8[records of the shard]: the verdict of the last step that gave one."""
        folder = self.verdict or self.base
        with read_arrays(file_of(f"{folder}/{VERDICT}", shard)) as file:
            return file[REASON]

    def shard_of(self, index: np.ndarray) -> np.ndarray:
        """Which shard records belong to by their numbers."""
        return np.searchsorted(np.asarray(self.bounds), index, side="right") - 1


def file_of(path: str, shard: int) -> str:
    """File of a pass (``folder/name``) for a shard."""
    return f"{path}.{shard:05d}.npz"


def missing(path: str, shards: Sequence[int]) -> list[int]:
    """Shards that a pass still has to do; the folder is listed once."""
    folder, _, name = path.rpartition("/")
    place = epath.Path(folder)
    there = {each.name for each in place.iterdir()} if place.is_dir() else set()
    return [shard for shard in shards if os.path.basename(file_of(name, shard)) not in there]


def base_columns(base: str, shard: int, left: np.ndarray) -> dict[str, Any]:
    """The columns of the first pass, read when they are asked for."""

    def load(name: str) -> Any:
        table = _base_table(f"{base}/records.{shard:05d}.parquet")
        values = table.column(name).take(left)
        return values.to_numpy() if name in _NUMBERS else values.to_pylist()

    return {name: functools.partial(load, name) for name in (*_NUMBERS, "keys", "texts", "meta")}


def all_keys(base: str, shard: int) -> list[str]:
    """Keys of all records of a shard, dropped ones among them."""
    return _base_table(f"{base}/records.{shard:05d}.parquet").column("keys").to_pylist()


_NUMBERS = ("label", "width", "height", "bytes")


@functools.lru_cache(maxsize=2)
def _base_table(path: str) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(io.BytesIO(epath.Path(path).read_bytes()))


def _columns(path: str, index: np.ndarray) -> dict[str, Any]:
    """The columns of a pass for the records that are left of those that it saw."""
    with read_arrays(path) as file:
        names = file.files
        before = file[INDEX]
    place = np.searchsorted(before, index)

    def load(name: str) -> Any:
        with read_arrays(path) as file:
            if name + ROW in names:
                return Ragged(file[name + ROW], file[name]).chosen(place)
            return file[name][place]

    return {
        name: functools.partial(load, name)
        for name in names
        if name not in (INDEX, REASON) and not name.endswith(ROW)
    }


def read_records(
    source: str, split: str, first: int, end: int
) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Read records once: ``(columns, reasons)``.

    Returns:
      Columns ``keys``, ``texts``, ``meta``, ``label``, ``width``, ``height``, ``bytes`` as lists,
      and uint8 reasons, numbers into :data:`jaxclip.curate.source.REASONS` from 1.
    """
    names = ("keys", "texts", "meta", "label", "width", "height", "bytes")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    reasons = np.zeros(end - first, np.uint8)
    for row, index in enumerate(range(first, end)):
        record = source_lib.record(source, split, index)
        size: tuple[int, int] | BadRecord = (0, 0)
        if not isinstance(record, BadRecord):
            size = decode.size_of(record.image)
        bad = next((each for each in (record, size) if isinstance(each, BadRecord)), None)
        if bad is not None:
            reasons[row] = source_lib.REASONS.index(bad.reason) + 1
            values: tuple[Any, ...] = (bad.key or getattr(record, "key", ""), [], "", -1, 0, 0, 0)
        else:
            assert not isinstance(record, BadRecord) and not isinstance(size, BadRecord)
            values = (record.key, list(record.texts), record.meta, record.label, *size,
                      len(record.image))  # fmt: skip
        for name, value in zip(names, values, strict=True):
            columns[name].append(value or f"{split}/{index}" if name == "keys" else value)
    return columns, reasons


def write_base(base: str, source: str, split: str, bounds: Sequence[int], shard: int) -> None:
    """The first pass over a shard: what is known of its records without decoding pictures."""
    import pyarrow as pa
    import pyarrow.parquet

    first, end = bounds[shard], bounds[shard + 1]
    columns, reasons = read_records(source, split, first, end)
    kinds = {"texts": pa.list_(pa.string()), "keys": pa.string(), "meta": pa.string()}
    table = pa.table({n: pa.array(v, kinds.get(n, pa.int64())) for n, v in columns.items()})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream, compression="zstd")
    write_bytes(f"{base}/records.{shard:05d}.parquet", stream.getvalue())
    # Last: it makes the shard valid.
    write_arrays(
        file_of(f"{base}/{VERDICT}", shard), {INDEX: np.arange(first, end), REASON: reasons}
    )
