"""Directories of TFDS data sets, read without TFDS: TFRecord or ArrayRecord shards by number."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from jaxclip.data import array_record_file, remote, tfrecord
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.record import BadRecord, FieldNames, Record, parse_example
from jaxclip.registry import check_options, hint, nearest


def open_directory(
    directory: str | os.PathLike[str],
    name: str | None = None,
    fields: Mapping[str, str] | None = None,
) -> DataSet:
    """Open the directory of a TFDS data set; see :func:`.sources.open`.

    Args:
      directory: with one configuration and version.
      name: for messages.
      fields: see :func:`field_names`.
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

    def open_split(split: str) -> RecordSource:
        with _sound(path / "dataset_info.json"):
            paths = _shard_paths(path, info, splits[split], len(lengths[split]))
        missing = _missing(path, paths)
        if missing:
            raise FileNotFoundError(
                f"split {split!r} of data set {name!r} lacks {len(missing)} of {len(paths)} "
                f"shards, the first is {missing[0]}; copy it there or import the data again"
            )
        reader = _reader(info.get("fileFormat", "tfrecord"), paths, lengths[split], name)
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


# Of what an index of an ArrayRecord file holds.
_INDEX_VERSION = 1

# Records of a shard; more of them are no number but damage.
_MAX_LENGTH = 10**8

# Text features that may name a record.
_KEYS = ("key", "id", "file_name", "filename", "image/filename")


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


def _reader(file_format: str, paths: list[str], lengths: list[int], name: str) -> _BytesReader:
    if file_format == "tfrecord":
        return tfrecord.TFRecordReader(paths, lengths)
    if file_format == "array_record":
        if paths and remote.is_remote(paths[0]):
            return RemoteArrayRecordReader(paths, lengths)
        return ArrayRecordReader(paths, lengths)
    raise ValueError(
        f"data set {name!r} is stored as {file_format!r}; jaxclip reads 'tfrecord' and "
        "'array_record'"
    )


def field_names(
    features: Mapping[str, Any], name: str, given: Mapping[str, str] = types.MappingProxyType({})
) -> FieldNames:
    """Find image, captions and label among the features of a TFDS ``features.json``.

    Args:
      features: the parsed file.
      name: of the data set, for errors.
      given: part of a record (``image``, ``texts``, ``label``, ``key``, ``meta``) -> feature.

    Returns:
      The names; ``texts`` is empty if the data set has class labels in place of captions.

    Raises:
      ValueError: there is no image feature, or neither captions nor a class label, or a given
        feature is not there.
    """
    known = features.get("featuresDict", {}).get("features", {})
    kinds = {
        key: value.get("pythonClassName", "").rsplit(".", 1)[-1] for key, value in known.items()
    }
    listing = ", ".join(f"{key}: {kind}" for key, kind in kinds.items()) or "none"
    _check_given(given, known, kinds, name)
    images = [key for key, kind in kinds.items() if kind == "Image"]
    images = [given["image"]] if "image" in given else images
    if not images:
        raise ValueError(
            f"data set {name!r} has no image feature (its features are {listing}); jaxclip needs "
            "'image' and 'texts', which `jaxclip data import` writes"
        )
    texts = [
        key
        for key, kind in kinds.items()
        if key in ("texts", "text", "captions", "caption")
        and (kind == "Text" or _is_text_sequence(known[key]))
    ]
    # As coco_captions has them: a Sequence of dicts with the caption under "text".
    texts += [f"{key}/{inner}" for key in ("captions", "texts") for inner in _texts_in(known, key)]
    texts = [given["texts"]] if "texts" in given else texts
    labels = [key for key in ("label", "labels") if kinds.get(key) in ("ClassLabel", "Scalar")]
    labels = [given["label"]] if "label" in given else labels
    if not texts and not (labels and kinds[labels[0]] == "ClassLabel"):
        raise ValueError(
            f"data set {name!r} has neither captions nor class labels (its features are "
            f"{listing}); jaxclip needs 'texts', a Sequence of Text"
        )
    return FieldNames(
        image=images[0] if "image" in given or "image" not in images else "image",
        texts="texts" if "texts" in texts else (texts[0] if texts else ""),
        label=labels[0] if labels else "",
        key=given.get("key", next((key for key in _KEYS if kinds.get(key) == "Text"), "")),
        meta=given.get("meta", "meta" if kinds.get("meta") == "Text" else ""),
    )


def _check_given(
    given: Mapping[str, str], known: Mapping[str, Any], kinds: Mapping[str, str], name: str
) -> None:
    """Refuse a map of features that names what is not there."""
    what = f"data set {name!r}"
    check_options(given, [field.name for field in dataclasses.fields(FieldNames)], what)
    nested = [f"{key}/{inner}" for key in known for inner in _texts_in(known, key)]
    for part, feature in given.items():
        if feature not in known and feature not in nested:
            raise ValueError(f"{what} has no feature {feature!r}{hint(feature, [*known, *nested])}")
        if part == "image" and kinds.get(feature) != "Image":
            raise ValueError(f"{what}: feature {feature!r} is no Image but {kinds.get(feature)}")


def _texts_in(known: Mapping[str, Any], key: str) -> list[str]:
    """Names of the texts in a feature that is a Sequence of dicts."""
    inner = known.get(key, {}).get("sequence", {}).get("feature", {})
    features = inner.get("featuresDict", {}).get("features", {})
    return [
        name
        for name in ("text", "caption", "raw")
        if str(features.get(name, {}).get("pythonClassName", "")).endswith(".Text")
    ]


def _is_text_sequence(feature: Mapping[str, Any]) -> bool:
    inner = feature.get("sequence", {}).get("feature", {})
    return inner.get("pythonClassName", "").endswith(".Text")


def _other_kind(directory: Any) -> str:
    """How to name a folder of files that are read in place; empty if it is none."""
    if not isinstance(directory, pathlib.Path):
        return ""
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
        near = f"; did you mean {str(nested[0].parent)!r}?" if nested else ""
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
