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

import glob
import json
import logging
import os
import pathlib
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.record import BadRecord, Record, decode_texts
from jaxclip.data.tfrecord import FileCache, load_sidecar, save_sidecar

_LOG = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
TEXT_EXTENSIONS = ("txt", "text", "caption")
JSON_EXTENSION = "json"
# Members of a JSON file that hold captions, if there is no text file.
CAPTION_FIELDS = ("texts", "captions", "text", "caption")

SIZES_FILE = "sizes.json"

# Columns of an index: where the image, the text and the JSON file of a sample start, and their
# sizes; -1 = there is none.
_PARTS = ("image", "text", "json")
_NONE = -1


def open_pattern(pattern: str) -> DataSet:
    """Open tars as a data set.

    Args:
      pattern: of tar files, with ``{000..009}``, ``{a,b}``, ``*`` and ``?``, all of them one split,
        ``train``; or a folder, whose tars are ``train``, or whose subfolders with tars are splits.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: no tar matches, or one named by the pattern does not exist.
      ValueError: a tar is compressed.
    """
    splits = _splits(pattern)
    counts = {name: _counts(paths) for name, paths in splits.items()}
    return DataSet(
        f"webdataset:{pattern}",
        {name: sum(each) for name, each in counts.items()},
        lambda name: TarSource(splits[name], counts[name]),
    )


def expand(pattern: str) -> list[str]:
    """File names that a pattern stands for.

    Braces are expanded whether or not the files exist, ``*`` and ``?`` match existing files.

    Args:
      pattern: see :func:`open_pattern`.

    Returns:
      Names, in the order of the braces and sorted within wildcards.

    Raises:
      FileNotFoundError: a name that does not exist, or a wildcard without a match.
    """
    names: list[str] = []
    for name in _braces(pattern):
        found = [name] if os.path.isfile(name) else sorted(glob.glob(name))
        if not found:
            raise FileNotFoundError(
                f"{name!r}: no such file" + (f" (of {pattern!r})" if name != pattern else "")
            )
        names.extend(found)
    return names


def _braces(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    before, inside, after = pattern[: match.start()], match[1], pattern[match.end() :]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{i:0{width}d}" for i in range(first, last + 1)]
    else:
        choices = inside.split(",")
    # What follows is expanded before the next choice, so the last braces run fastest.
    for choice in choices:
        for rest in _braces(after):
            yield before + choice + rest


def _splits(pattern: str) -> dict[str, list[str]]:
    if not os.path.isdir(pattern):
        return {"train": expand(pattern)}
    folder = pathlib.Path(pattern)
    here = sorted(map(str, folder.glob("*.tar")))
    if here:
        return {"train": here}
    below = {
        each.name: sorted(map(str, each.glob("*.tar")))
        for each in sorted(folder.iterdir())
        if each.is_dir()
    }
    below = {name: paths for name, paths in below.items() if paths}
    if not below:
        raise FileNotFoundError(f"{pattern!r}: no .tar in this folder, nor in the folders in it")
    return below


class SampleName(NamedTuple):
    """A file name in a tar, taken apart: ``"a/0001.seg.PNG"`` is ``("a/0001", "seg.png")``."""

    key: str
    extension: str


def sample_name(name: str) -> SampleName | None:
    """Key and extension of a file in a tar; None for one that belongs to no sample.

    As WebDataset defines it: the key ends at the first dot of the last part of the name. Hidden
    files and files without an extension are no part of a sample.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    if not stem or not dot or not extension:
        return None
    return SampleName(folder + slash + stem, extension.lower())


def part_of(extension: str) -> str | None:
    """Which part of a sample a file is: "image", "text", "json", or None if none we use."""
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in TEXT_EXTENSIONS:
        return "text"
    return "json" if extension == JSON_EXTENSION else None


class TarIndex(NamedTuple):
    """Where the files of the samples of one tar are.

    Attributes:
      keys: bytes[n], UTF-8.
      offsets: int64[n, 3], of image, text and JSON; -1 = the sample has none.
      sizes: int64[n, 3].
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray


def index_tar(path: str | os.PathLike[str]) -> TarIndex:
    """Scan the headers of a tar, or load what an earlier scan left beside it.

    A damaged tar is indexed up to the damage, with a warning.

    Raises:
      ValueError: the tar is compressed.
    """
    path = pathlib.Path(path)
    stat = path.stat()
    stamp = np.array([stat.st_size, stat.st_mtime_ns], np.int64)
    sidecar = path.with_name(f".{path.name}.index.npz")
    loaded = load_sidecar(sidecar, stamp, TarIndex._fields)
    if loaded is not None:
        return TarIndex(*loaded)
    index = _scan(path)
    save_sidecar(sidecar, stamp, index._asdict())
    return index


def _scan(path: pathlib.Path) -> TarIndex:
    keys: list[bytes] = []
    offsets: list[list[int]] = []
    sizes: list[list[int]] = []
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in members(tar):
                name = sample_name(member.name) if member.isreg() else None
                part = part_of(name.extension) if name else None
                if name is None or part is None:
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
                key = name.key.encode("utf-8", "replace")
                if not keys or keys[-1] != key:
                    keys.append(key)
                    offsets.append([_NONE] * len(_PARTS))
                    sizes.append([0] * len(_PARTS))
                column = _PARTS.index(part)
                if offsets[-1][column] == _NONE:
                    offsets[-1][column], sizes[-1][column] = member.offset_data, member.size
    except tarfile.TarError as error:
        if not keys and _is_compressed(path):
            raise ValueError(
                f"{path} is compressed, which cannot be read in place; unpack it, or use "
                "`jaxclip data import`"
            ) from error
        _LOG.warning("%s is damaged after %d samples: %s", path, len(keys), error)
    return TarIndex(
        np.array(keys, np.bytes_),
        np.array(offsets, np.int64).reshape(-1, len(_PARTS)),
        np.array(sizes, np.int64).reshape(-1, len(_PARTS)),
    )


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one, not kept: the list that tarfile keeps of them would only grow."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]


def _is_compressed(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _counts(paths: Sequence[str]) -> list[int]:
    """Number of samples of each tar: from what lies beside them, else by indexing."""
    known = [_noted_count(pathlib.Path(path)) for path in paths]
    unknown = [path for path, count in zip(paths, known, strict=True) if count is None]
    if len(unknown) > 100:
        _LOG.info("indexing %d tars; a %s beside them would save that", len(unknown), SIZES_FILE)
    with ThreadPoolExecutor(4) as pool:
        counted = dict(
            zip(unknown, pool.map(lambda path: len(index_tar(path).keys), unknown), strict=True)
        )
    return [counted[path] if n is None else n for path, n in zip(paths, known, strict=True)]


_sizes_cache: dict[tuple[str, int], dict[str, Any]] = {}


def _noted_count(path: pathlib.Path) -> int | None:
    sizes = path.with_name(SIZES_FILE)
    stats = path.with_name(f"{path.stem}_stats.json")
    try:
        if sizes.is_file():
            stamp = (str(sizes), sizes.stat().st_mtime_ns)
            if stamp not in _sizes_cache:
                _sizes_cache[stamp] = json.loads(sizes.read_text())
            value = _sizes_cache[stamp].get(path.name)
        elif stats.is_file():
            value = json.loads(stats.read_text()).get("successes")
        else:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, int) and value >= 0 else None


class TarSource(RecordSource):
    """Samples of a list of tars by index.

    Args:
      paths: the tars, in order.
      counts: number of samples of each. Where a tar holds fewer, the missing ones are bad records.
      max_indices: how many tars' indices are kept in memory (about 70 bytes a sample).
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int], max_indices: int = 128):
        self._paths = list(paths)
        self._starts = np.concatenate([[0], np.cumsum(list(counts), dtype=np.int64)])
        self._files = FileCache()
        self._indices: OrderedDict[int, TarIndex] = OrderedDict()
        self._max_indices = max_indices
        self._lock = threading.Lock()
        self._tar_locks = [threading.Lock() for _ in self._paths]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record | BadRecord:
        tar = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[tar])
        where = self._index(tar)
        if row >= len(where.keys):
            return BadRecord("corrupted", f"{self._paths[tar]} has {len(where.keys)} samples only")
        key = where.keys[row].decode("utf-8")
        files = {part: self._bytes(tar, where, row, part) for part in ("image", "text")}
        image, text = files["image"], files["text"]
        if image is None:
            return BadRecord("missing_image", f"sample without an image in {self._paths[tar]}", key)
        in_json = self._bytes(tar, where, row, "json") if text is None else None
        texts, bad = decode_texts(caption_bytes(in_json) if text is None else (text,))
        if not texts:
            return BadRecord("bad_utf8" if bad else "empty_caption", "", key)
        return Record(image, texts, key=key)

    def _bytes(self, tar: int, where: TarIndex, row: int, part: str) -> bytes | None:
        column = _PARTS.index(part)
        offset, size = int(where.offsets[row, column]), int(where.sizes[row, column])
        return None if offset == _NONE else self._files.pread(self._paths[tar], size, offset)

    def _index(self, tar: int) -> TarIndex:
        with self._tar_locks[tar]:  # one scan of a tar, whoever needs it first
            with self._lock:
                index = self._indices.get(tar)
                if index is not None:
                    self._indices.move_to_end(tar)
                    return index
            index = index_tar(self._paths[tar])
            with self._lock:
                self._indices[tar] = index
                if len(self._indices) > self._max_indices:
                    self._indices.popitem(last=False)
        return index


def caption_bytes(data: bytes | None) -> tuple[bytes, ...]:
    """Captions in a sample's JSON file, not yet checked to be UTF-8; none if it is not JSON."""
    if data is None:
        return ()
    try:
        # Bytes that are no UTF-8 stay what they are, for the caller to find.
        values = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return ()
    if not isinstance(values, dict):
        return ()
    name = next((name for name in CAPTION_FIELDS if values.get(name)), None)
    found = values[name] if name else []
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list):
        return ()
    return tuple(text.encode("utf-8", "surrogateescape") for text in texts if isinstance(text, str))
