"""WebDataset tar files, read in place by index.

A sample is a run of files in a tar whose names differ in what follows the first dot of the last
part only: ``0001.jpg``, ``0001.txt``, ``0001.json``. A tar has no index, so one pass over its
headers makes one, which is kept beside it if the folder can be written to. The number of samples is
needed before that: of large data sets it comes with the tars, in ``sizes.json`` (``{"00000.tar":
9983, …}``) or in one ``00000_stats.json`` for each, as img2dataset writes them. Otherwise all tars
are indexed when the data set is opened.

Compressed tars have no random access; ``jaxclip data import`` reads them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxclip.data import class_values, remote
from jaxclip.data.benchmark_files import (
    NUMBER_FILE,
    TEMPLATES_FILE,
    captions_by_line,
    class_names,
    lines_of,
    noted_number,
)  # fmt: skip
from jaxclip.data.caption_shapes import captioned, joined_numbers, said_in
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.naming import TEXT_FIELDS, is_hidden, splits_of_files
from jaxclip.data.patterns import expand
from jaxclip.data.record import BadRecord, Record, decode_foreign_texts, meta_object
from jaxclip.data.tar_index import TEXT_EXTENSIONS, TarIndex, index_tar
from jaxclip.data.tfrecord import FileCache, Stamp

_LOG = logging.getLogger(__name__)

SIZES_FILE = "sizes.json"
_SHOWN = 40
# Where the Hugging Face hub keeps tars, by split or not.
_HUB_FOLDER = "data"


def open_pattern(pattern: str) -> DataSet:
    """Open tars as a data set.

    Args:
      pattern: of tar files, with ``{000..009}``, ``{a,b}``, ``*`` and ``?``, all of them one split,
        ``train``; or a folder, whose tars are ``train`` or, where all their names say so, of
        several splits, or whose subfolders with tars are splits; both also in a folder ``data``.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: no tar matches, or one named by the pattern, or by ``sizes.json`` in the
        folder, does not exist.
      ValueError: a tar is compressed, or the files of its samples are not side by side.
    """
    splits = _splits(pattern)
    for paths in splits.values() if _is_folder(pattern) else ():
        check_complete(paths)
    counts = {name: _counts(paths) for name, paths in splits.items()}
    for name, paths in splits.items():
        if not sum(counts[name]):
            problem = bytes(index_tar(paths[0]).problem.item()).decode("utf-8")
            raise ValueError(f"{paths[0]} holds no samples" + (f": {problem}" if problem else ""))
    folder = remote.path_of(pattern) if _is_folder(pattern) else None
    names = None if folder is None else class_names(folder)
    templates = [] if folder is None else list(filter(None, lines_of(folder / TEMPLATES_FILE)))
    return DataSet(
        f"webdataset:{pattern}",
        {name: sum(each) for name, each in counts.items()},
        lambda name: TarSource(splits[name], counts[name], class_names=names or ()),
        class_names=names,
        templates=templates or None,
    )


def _is_folder(pattern: str) -> bool:
    if remote.is_remote(pattern):
        return not pattern.endswith(".tar") and not set(pattern) & set("*?{")
    return os.path.isdir(pattern)


def _splits(pattern: str) -> dict[str, list[str]]:
    if not _is_folder(pattern):
        return {"train": expand(pattern)}
    folder = remote.path_of(pattern)
    inner = folder / _HUB_FOLDER
    splits = _splits_in(folder)
    if set(splits) <= {_HUB_FOLDER} and inner.is_dir():
        splits = _splits_in(inner)
    packed = [
        file
        for place in (folder, inner)
        for ending in ("*.tar.gz", "*.tar.bz2", "*.tar.xz", "*.tar.zst", "*.tgz")
        for file in place.glob(ending)
        if not is_hidden(file.name)
    ]
    if splits:
        if packed:
            _LOG.warning(
                "%d compressed tars are left out (%s): unpack or import them",
                len(packed),
                packed[0],
            )
        return splits
    if packed:
        raise ValueError(
            f"{packed[0]} is compressed, which cannot be read in place; unpack it, or use "
            "`jaxclip data import`"
        )
    raise FileNotFoundError(
        f"{pattern!r}: no .tar in this folder, nor in the folders in it; pictures and tables "
        f"are imported: `jaxclip data import --from {pattern} --to DIR`"
    )


def _splits_in(folder: Any) -> dict[str, list[str]]:
    """Tars of each split: those in a folder, by their names, or else in the folders in it."""
    here = _tars_in(folder)
    if here:
        splits: dict[str, list[str]] = {}
        for path, split in zip(here, splits_of_files(here), strict=True):
            splits.setdefault(split or "train", []).append(path)
        return splits
    below = {
        each.name: _tars_in(each)
        for each in sorted(folder.iterdir())
        if not is_hidden(each.name) and each.is_dir()
    }
    return {name: paths for name, paths in below.items() if paths}


def _tars_in(folder: Any) -> list[str]:
    ending = "*.tar" if remote.is_remote(folder) else "*.[tT][aA][rR]"
    if not remote.is_remote(folder):
        os.scandir(folder).close()  # an error where it may not be read; glob finds nothing there
    return sorted(
        str(path)
        for path in folder.glob(ending)
        # A link to nothing, or a pipe, is no folder: its own error names it.
        if not is_hidden(path.name) and (remote.is_remote(folder) or not path.is_dir())
    )


def _counts(paths: Sequence[str]) -> list[int]:
    """Number of samples of each tar: from what lies beside them, else by indexing."""
    known = [_noted_count(remote.path_of(path)) for path in paths]
    unknown = [path for path, count in zip(paths, known, strict=True) if count is None]
    if len(unknown) > 100:
        _LOG.info("indexing %d tars; a %s beside them would save that", len(unknown), SIZES_FILE)
    with ThreadPoolExecutor(4) as pool:
        counted = dict(
            zip(unknown, pool.map(lambda path: len(index_tar(path).keys), unknown), strict=True)
        )
    return [counted[path] if n is None else n for path, n in zip(paths, known, strict=True)]


def check_complete(paths: Sequence[str]) -> None:
    """Raise FileNotFoundError if ``sizes.json`` beside tars names others that are not there, or
    ``nshards.txt`` says that there are more."""
    for folder in sorted({os.path.dirname(path) for path in paths}):
        there = {os.path.basename(path) for path in paths if os.path.dirname(path) == folder}
        named = _sizes(remote.path_of(folder) / SIZES_FILE)
        missing = sorted(name for name in named if name.endswith(".tar") and name not in there)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"{os.path.join(folder, missing[0])}{more} is not there, but {SIZES_FILE} names "
                f"it; bring it back, or name those that you have: {os.path.join(folder, '*.tar')}"
            )
        count = noted_number(remote.path_of(folder) / NUMBER_FILE)
        if count > len(there):
            raise FileNotFoundError(
                f"{folder} holds {len(there)} tars, but {NUMBER_FILE} says {count}; bring them "
                f"back, or name those that you have: {os.path.join(folder, '*.tar')}"
            )


def _sizes(path: Any) -> Mapping[str, Any]:
    """Numbers of samples by the name of the tar; none if there is no such file."""
    try:
        # A remote file is asked for once a process.
        stamp = (str(path), 0 if remote.is_remote(path) else path.stat().st_mtime_ns)
        if stamp not in _sizes_cache:
            _sizes_cache[stamp] = json.loads(path.read_text())
        sizes = _sizes_cache[stamp]
    except (OSError, ValueError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


_sizes_cache: dict[tuple[str, int], dict[str, Any]] = {}


def _noted_count(path: Any) -> int | None:
    value = _sizes(path.with_name(SIZES_FILE)).get(path.name)
    if value is None:
        try:
            value = json.loads(path.with_name(f"{path.stem}_stats.json").read_text())["successes"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return value if isinstance(value, int) and value >= 0 else None


class TarSource(RecordSource):
    """Samples of a list of tars by index.

    Args:
      paths: the tars, in order.
      counts: number of samples of each. Where a tar holds fewer, the missing ones are bad records.
      max_indices: how many tars' indices are kept in memory (about 50 bytes a sample). A window of
        the shuffled order has records of a thousand places.
      class_names: of the labels; they stand in for captions.
    """

    def __init__(
        self,
        paths: Sequence[str],
        counts: Sequence[int],
        max_indices: int = 1200,
        class_names: Sequence[str] = (),
    ):
        self._paths = list(paths)
        self._class_names = list(class_names)
        self._number_of = {name: number for number, name in enumerate(class_names)}
        self._by_line = captions_by_line(paths)
        self._starts = np.concatenate([[0], np.cumsum(list(counts), dtype=np.int64)])
        self._files = FileCache()
        self._indices: OrderedDict[int, TarIndex] = OrderedDict()
        self._max_indices = max_indices
        self._lock = threading.Lock()
        self._tar_locks = [threading.Lock() for _ in self._paths]
        self._stamps: list[Stamp] = [(0, 0)] * len(self._paths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record | BadRecord:
        return self._read(index)

    def picture(self, index: int) -> Record | BadRecord:
        """As :meth:`__getitem__`, but a sample needs no caption."""
        return self._read(index, alone=True)

    def _read(self, index: int, *, alone: bool = False) -> Record | BadRecord:
        tar = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[tar])
        try:
            where = self._index(tar)
        except ValueError as error:
            return BadRecord("corrupted", str(error))
        except OSError as error:
            return BadRecord("unreachable", str(error))
        try:
            if self._files.stamp(self._paths[tar]) != self._stamps[tar]:
                where = self._index_anew(tar)
            return self._sample(tar, where, row, alone)
        except ValueError as error:
            return BadRecord("corrupted", str(error))
        except OSError as error:  # a disk or a bucket that fails, or a file that was removed
            return BadRecord("unreachable", str(error))

    def _sample(self, tar: int, where: TarIndex, row: int, alone: bool) -> Record | BadRecord:
        if row >= len(where.keys):
            return BadRecord("corrupted", f"{self._paths[tar]} has {len(where.keys)} samples only")
        key = where.keys[row].decode("utf-8")
        places = where.files(row)

        def content(part: str) -> bytes | None:
            place = places.get(part)
            return None if place is None else self._files.pread(self._paths[tar], *place[::-1])

        image = content("image")
        if image is None:
            return BadRecord("missing_image", f"sample without an image in {self._paths[tar]}", key)
        if alone:
            return Record(image, (), -1, key)
        data = content("json") or b""
        meta = data.decode("utf-8", "replace")
        files = [each for each in map(content, TEXT_EXTENSIONS) if each is not None]
        if self._by_line[tar]:
            files = [line for each in files for line in each.splitlines()]
        texts, bad = decode_foreign_texts(files)
        values = json_object(data, meta) if data else {}
        if not texts:
            texts, bad_in_json = decode_foreign_texts(caption_bytes(values))
            bad += bad_in_json
        cls = content("label")
        found = class_values.of_sample(cls, values, has_captions=bool(texts))
        label = class_values.number_of(found, cls, self._number_of)
        if not texts and 0 <= label < len(self._class_names):
            texts = (self._class_names[label],)
        elif not texts and isinstance(found, str):
            texts = (found,)  # the name of a class
        if not texts and label < 0:
            detail = "" if bad else f"no caption in {', '.join(sorted(places))} of the sample"
            if cls and not bad:
                detail = f"its label is {cls[:_SHOWN]!r}, not one number of a class or its name"
            return BadRecord("bad_utf8" if bad else "empty_caption", detail, key)
        return Record(image, texts, label, key, meta)

    def _index(self, tar: int) -> TarIndex:
        with self._tar_locks[tar]:  # one scan of a tar, whoever needs it first
            with self._lock:
                index = self._indices.get(tar)
                if index is not None:
                    self._indices.move_to_end(tar)
                    return index
            # Before what it is of, so that no change goes unnoticed.
            self._files.forget(self._paths[tar])
            self._stamps[tar] = self._files.stamp(self._paths[tar])
            index = index_tar(self._paths[tar])
            noted = int(self._starts[tar + 1] - self._starts[tar])
            if len(index.keys) > noted:
                _LOG.warning(
                    "%s holds %d samples, but %d by what is noted beside it: the others are left "
                    "out; correct or remove %s or its _stats.json",
                    self._paths[tar], len(index.keys), noted, SIZES_FILE,
                )  # fmt: skip
            with self._lock:
                self._indices[tar] = index
                if len(self._indices) > self._max_indices:
                    self._indices.popitem(last=False)
        return index

    def _index_anew(self, tar: int) -> TarIndex:
        """The index of a tar that somebody wrote anew: by the old one a picture would get whatever
        stands where its caption was."""
        path = self._paths[tar]
        with self._tar_locks[tar]:
            self._files.forget(path)
            if self._files.stamp(path) != self._stamps[tar]:
                with self._lock:
                    known = self._indices.pop(tar, None) is not None
                if known:
                    _LOG.warning("%s was changed while it is read: it is indexed anew", path)
        return self._index(tar)


def json_object(data: bytes, text: str) -> Mapping[str, Any]:
    """The object in a sample's JSON file, empty if it is none; captions alone become one.

    Bytes that are no UTF-8 stay what they are, for the caller to find.

    Args:
      data: of the file.
      text: the same, with a mark for each of those bytes.
    """
    if "\ufffd" in text:
        text = data.decode("utf-8", "surrogateescape")
    text = text.removeprefix("\ufeff").lstrip()
    # A text or a list of them as the only member of an object.
    return meta_object(f'{{"{TEXT_FIELDS[0]}": {text}}}' if text[:1] in ('"', "[") else text)


def caption_bytes(values: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Captions among the values of a JSON file, not yet checked to be UTF-8.

    They are those of the first usual name that has any.
    """
    values = joined_numbers(values) or values
    name = captioned(values)
    texts = (each.text for each in said_in(values[name])) if name else ()
    return tuple(text.encode("utf-8", "surrogateescape") for text in texts if isinstance(text, str))
