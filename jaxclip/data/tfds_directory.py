"""Directories of TFDS data sets, read without TFDS: TFRecord or ArrayRecord shards by number."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxclip.data import array_record_file, remote, tfrecord
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.record import BadRecord, FieldNames, Record, parse_example
from jaxclip.data.tfds_features import field_names
from jaxclip.registry import hint, nearest


def open_directory(
    directory: str | os.PathLike[str],
    name: str | None = None,
    fields: Mapping[str, str] | None = None,
) -> DataSet:
    """Open the directory of a TFDS data set; see :func:`.sources.open`.

    Args:
      directory: with one configuration and version.
      name: for messages.
      fields: see :func:`jaxclip.data.tfds_features.field_names`.
    """
    path = remote.path_of(directory)
    name = name or os.fspath(directory)
    info = _load_json(path, "dataset_info.json", name)
    features = _load_json(path, "features.json", name)
    with _sound(path / "features.json"):
        names = field_names(features, name, fields or {})
    class_names = _class_names(path, names.label)
    with _sound(path / "dataset_info.json"):
        splits = {str(split["name"]): split for split in info.get("splits", [])}
        lengths = {split: _lengths(entry) for split, entry in splits.items()}
        _check_readable(info, splits, name)

    def open_split(split: str) -> RecordSource:
        with _sound(path / "dataset_info.json"):
            paths = _shard_paths(path, info, splits[split], len(lengths[split]))
        missing = _missing(path, paths)
        if missing:
            raise FileNotFoundError(
                f"split {split!r} of data set {name!r} lacks {len(missing)} of {len(paths)} "
                f"shards, the first is {missing[0]}; copy it there or import the data again"
            )
        reader = _reader(info.get("fileFormat", "tfrecord"), paths, lengths[split])
        return _ExampleSource(reader, names, class_names)

    counts = {split: sum(each) for split, each in lengths.items()}
    # What lies beside a remote data set (translations, stored vectors) is not read.
    local = None if remote.is_remote(path) else path
    return DataSet(name, counts, open_split, class_names, bool(names.texts), local)


@contextlib.contextmanager
def _sound(file: Any) -> Iterator[None]:
    """What has no such values as are looked for in a file of JSON is the file's fault."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _check_readable(info: Mapping[str, Any], splits: Mapping[str, Any], name: str) -> None:
    """Refuse shards of another format, or of unknown numbers of records."""
    file_format = info.get("fileFormat", "tfrecord")
    if file_format not in _FILE_FORMATS:
        raise ValueError(
            f"data set {name!r} is stored as {file_format!r}; jaxclip reads "
            f"{' and '.join(map(repr, _FILE_FORMATS))}"
        )
    for split, entry in splits.items():
        if "shardLengths" not in entry and entry.get("statistics"):
            raise ValueError(
                f"data set {name!r}: dataset_info.json does not say how many records each shard of "
                f"split {split!r} has; build it anew with a TFDS of today"
            )


def _lengths(split: Mapping[str, Any]) -> list[int]:
    """Numbers of records of a split's shards."""
    lengths = [str(length) for length in split.get("shardLengths", [])]
    for length in lengths:
        if not length.isdecimal() or int(length) > _MAX_LENGTH:
            raise IndexError(f"a shard of {length} records")
    return [int(length) for length in lengths]


def _missing(directory: Any, paths: list[str]) -> list[str]:
    """Shards that are not there; a remote folder is listed once for all."""
    if not remote.is_remote(directory):
        return [shard for shard in paths if not os.path.isfile(shard)]
    there = {str(each) for each in directory.iterdir()}
    return [shard for shard in paths if there and shard not in there]


_FILE_FORMATS = ("tfrecord", "array_record")

# Of what an index of an ArrayRecord file holds.
_INDEX_VERSION = 1

# Records of a shard; more of them are no number but damage.
_MAX_LENGTH = 10**8


class _BytesReader(Protocol):
    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | BadRecord: ...


class _ExampleSource(RecordSource):
    """Records out of serialised ``tf.train.Example`` messages."""

    def __init__(self, reader: _BytesReader, names: FieldNames, class_names: list[str] | None):
        self._reader = reader
        self._names = names
        self._class_names = None if names.texts else class_names

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, index: int) -> Record | BadRecord:
        data = self._reader.read(index)
        if isinstance(data, BadRecord):
            return data
        return parse_example(data, self._names, self._class_names)


class ArrayRecordReader:
    """Bytes of record ``i`` of a list of ArrayRecord files.

    Args:
      paths: the files, in order.
      lengths: number of records in each.
    """

    def __init__(self, paths: list[str], lengths: list[int]):
        self._paths = paths
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._readers: dict[int, Any] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes | BadRecord:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        try:
            return self._shard(shard).read([index - int(self._starts[shard])])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            return BadRecord("corrupted", f"{self._paths[shard]}: {error}")

    def _shard(self, shard: int) -> Any:
        if shard not in self._readers:
            from array_record.python import array_record_module

            self._readers[shard] = array_record_module.ArrayRecordReader(self._paths[shard])
        return self._readers[shard]


class RemoteArrayRecordReader:
    """Bytes of record ``i`` of a list of ArrayRecord files in a bucket.

    Args:
      paths: the files, in order.
      lengths: number of records in each.
      max_indices: how many files' indices are kept in memory (16 bytes a record).
    """

    def __init__(self, paths: list[str], lengths: list[int], max_indices: int = 1200):
        self._paths = paths
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._index_of = functools.lru_cache(max_indices)(_remote_index)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes | BadRecord:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, number = self._paths[shard], index - int(self._starts[shard])
        try:
            where = self._index_of(path)
            if number >= where.starts[-1]:
                return BadRecord("corrupted", f"{path} has {where.starts[-1]} records only")
            return array_record_file.read_record(
                lambda first, last: remote.read_slice(path, first, last), where, number
            )
        except OSError as error:
            return BadRecord("unreachable", str(error))
        except ValueError as error:
            return BadRecord("corrupted", f"{path}: {error}")


def _remote_index(path: str) -> array_record_file.Index:
    """The index of a file, from its end and footer; kept on this machine."""
    stamp, sidecar = tfrecord.stamp_and_sidecar(path, _INDEX_VERSION)
    loaded = tfrecord.load_sidecar(sidecar, stamp, array_record_file.Index._fields)
    if loaded is not None:
        return array_record_file.Index(*loaded)
    index = array_record_file.read_index(lambda first, last: remote.read_slice(path, first, last))
    tfrecord.save_sidecar(sidecar, stamp, index._asdict())
    return index


def _reader(file_format: str, paths: list[str], lengths: list[int]) -> _BytesReader:
    if file_format == "tfrecord":
        return tfrecord.TFRecordReader(paths, lengths)
    if paths and remote.is_remote(paths[0]):
        return RemoteArrayRecordReader(paths, lengths)
    return ArrayRecordReader(paths, lengths)


def _other_kind(directory: Any) -> str:
    """How to name a folder of files that are read in place; empty if it is none."""
    if not isinstance(directory, pathlib.Path) or any(directory.glob("*.tfrecord")):
        return ""  # others' TFRecord files are imported
    for pattern, kind in (
        ("dataset_dict.json", "arrow"), ("state.json", "arrow"), ("*.tar", "webdataset"),
        ("*.parquet", "parquet"), ("*/*.tar", "webdataset"), ("*/*.parquet", "parquet"),
    ):  # fmt: skip
        if next(directory.glob(pattern), None) is not None:
            return f"; read what it holds in place as {kind}:{directory}"
    return ""


def hint_beside(directory: Any, others: Iterable[str] = ()) -> str:
    """The end of an error about a folder that is not there: the data set beside it that is meant.

    Args:
      directory: the folder that is not there.
      others: names of further data sets.
    """
    parent = directory.parent
    if not parent.is_dir():
        return ""
    info = "dataset_info.json"
    files = (info, f"*/{info}", f"*/*/{info}")
    known = {
        each.name: str(each)
        for each in sorted(parent.iterdir())
        if each.is_dir() and any(next(iter(each.glob(file)), None) for file in files)
    } | {name: name for name in others}
    near = nearest(directory.name, known)
    if near:
        return f"; did you mean {known[near]!r}?"
    return hint(directory.name, known) if known else ""


def _load_json(directory: Any, file: str, name: str) -> dict[str, Any]:
    if not directory.is_dir():
        raise FileNotFoundError(f"data set {name!r}: no such directory{hint_beside(directory)}")
    path = directory / file
    if not path.is_file():
        nested = sorted(directory.glob(f"*/{file}")) + sorted(directory.glob(f"*/*/{file}"))
        near = f"; did you mean {str(nested[-1].parent)!r}?" if nested else ""
        near = _other_kind(directory) or near
        raise ValueError(
            f"{str(directory)!r} is not a TFDS data set: it has no {file}{near} "
            f"(`jaxclip data import --from {directory} --to DIR` makes one)"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _class_names(directory: Any, label: str) -> list[str] | None:
    path = directory / f"{label}.labels.txt"
    if not label or not path.is_file():
        return None
    return path.read_text(encoding="utf-8").splitlines()


def _shard_paths(
    directory: Any, info: Mapping[str, Any], split: Mapping[str, Any], num_shards: int
) -> list[str]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

    def name_of(shard: int) -> str:
        return str(template).format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=info.get("fileFormat", "tfrecord"),
            SHARD_INDEX=f"{shard:05d}",
            NUM_SHARDS=f"{num_shards:05d}",
            SHARD_X_OF_Y=f"{shard:05d}-of-{num_shards:05d}",
        )

    try:
        return [str(directory / name_of(shard)) for shard in range(num_shards)]
    except ValueError as error:
        raise KeyError(f"no name of a file: {template}") from error
