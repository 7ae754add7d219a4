"""Random access into TFRecord files.

A TFRecord file is a row of ``uint64 length, uint32 crc(length), bytes[length], uint32 crc(bytes)``,
little-endian, with masked CRC-32C checksums. It has no index, so one pass over the twelve-byte
headers makes one: an offset and a size for each record.
"""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
import logging
import mmap
import os
import pathlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import google_crc32c
import numpy as np

from jaxclip.data import file_kinds, remote
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
# Below this a scan takes milliseconds, and a file beside the shard would only be clutter.
_SIDECAR_MIN_BYTES = 64 << 20
_LOST = -1


def masked_crc(data: bytes) -> int:
    """TFRecord's checksum: CRC-32C, rotated and shifted so that CRCs of CRCs stay useful."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """The bytes of one record as they stand in a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _CRC.pack(masked_crc(length)), data, _CRC.pack(masked_crc(data))))


class ShardIndex:
    """Where the records of one TFRecord file are.

    Attributes:
      offsets: int64[n], position of each record's bytes in the file; -1 = lost.
      sizes: int64[n], number of bytes of each.
    """

    def __init__(self, offsets: np.ndarray, sizes: np.ndarray):
        self.offsets = offsets
        self.sizes = sizes

    @property
    def num_lost(self) -> int:
        return int((self.offsets == _LOST).sum())


def index_shard(path: str | os.PathLike[str], num_records: int) -> ShardIndex:
    """Scan a TFRecord file once, or load the index that an earlier scan left beside it.

    Damage does not stop the scan: where a header's checksum is wrong it goes on at the next place
    whose twelve bytes are a valid header. Records between are lost; they keep their numbers, so
    that all others keep theirs. (With damage in several places, how many were lost in each is a
    guess if it was more than one each: the numbers between the places may then be shifted.)

    Args:
      path: the file.
      num_records: how many records the data set's metadata promises.

    Returns:
      The index, with exactly ``num_records`` entries.
    """
    stamp, sidecar = stamp_and_sidecar(path, num_records)
    loaded = load_sidecar(sidecar, stamp, ("offsets", "sizes"))
    index = _scan(path, num_records) if loaded is None else ShardIndex(*loaded)
    large = remote.is_remote(path) or os.stat(path).st_size >= _SIDECAR_MIN_BYTES
    if loaded is None and large:
        save_sidecar(sidecar, stamp, {"offsets": index.offsets, "sizes": index.sizes})
    if index.num_lost:
        _LOG.warning("%s is damaged: %d of %d records are lost", path, index.num_lost, num_records)
    return index


def stamp_and_sidecar(
    path: str | os.PathLike[str], version: int
) -> tuple[np.ndarray, pathlib.Path]:
    """What an index of a file is valid for, and where it is kept.

    That is beside a local file if its folder can be written to, else in this machine's cache.

    Args:
      path: the file.
      version: of the index's meaning.

    Returns:
      int64[n] that is another one if the file or the version is, and the path of the index.

    Raises:
      OSError: the file is not there or can't be reached.
      ValueError: it is no file, but a folder or a pipe.
    """
    if remote.is_remote(path):
        url = os.fspath(path)
        return np.append(remote.generation(url), version), remote.cached_index(url)
    local = pathlib.Path(path)
    stat = file_kinds.check_is_file(local)
    stamp = np.array([stat.st_size, stat.st_mtime_ns, version], np.int64)
    beside = local.with_name(f".{local.name}.index.npz")
    if not os.access(local.parent, os.W_OK) and not beside.is_file():
        return stamp, remote.cached_index(os.fspath(local.resolve()))
    return stamp, beside


@contextlib.contextmanager
def bytes_of(path: str | os.PathLike[str]) -> Iterator[bytes | mmap.mmap]:
    """All bytes of a file: mapped if it is local, else in memory as long as they are needed."""
    if remote.is_remote(path):
        yield remote.read(os.fspath(path)) or b""
    elif os.stat(path).st_size == 0:
        yield b""
    else:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _scan(path: str | os.PathLike[str], num_records: int) -> ShardIndex:
    offsets: list[int] = []
    sizes: list[int] = []
    damaged: list[int] = []  # before which records
    with bytes_of(path) as data:
        end, position = len(data), 0
        while position + _HEADER_BYTES <= end and len(offsets) < num_records:
            length, crc = _HEADER.unpack_from(data, position)
            start = position + _HEADER_BYTES
            if crc != masked_crc(data[position : position + 8]):
                damaged.append(len(offsets))
                position = _next_header(data, position + 1)
                continue
            if start + length + _FOOTER_BYTES > end:
                break
            offsets.append(start)
            sizes.append(length)
            position = start + length + _FOOTER_BYTES
    missing = num_records - len(offsets)
    lost = [1] * min(missing, len(damaged))
    if missing > len(lost):  # the rest at the first place, or at the end if the file was cut
        damaged = damaged or [len(offsets)]
        lost = [missing - len(damaged) + 1, *[1] * (len(damaged) - 1)]
    for place, count in reversed(list(zip(damaged, lost, strict=False))):
        offsets[place:place] = [_LOST] * count
        sizes[place:place] = [0] * count
    return ShardIndex(np.array(offsets, np.int64), np.array(sizes, np.int64))


def _next_header(data: bytes | mmap.mmap, position: int) -> int:
    """First position at or after ``position`` where a valid header could start; else the end."""
    end = len(data)
    while position + _HEADER_BYTES <= end:
        length, crc = _HEADER.unpack_from(data, position)
        # The cheap test first: random bytes rarely make a length that fits into the file.
        fits = length <= end - position - _HEADER_BYTES - _FOOTER_BYTES
        if fits and crc == masked_crc(data[position : position + 8]):
            return position
        position += 1
    return end


def load_sidecar(
    sidecar: pathlib.Path, stamp: np.ndarray, names: Sequence[str]
) -> list[np.ndarray] | None:
    """Arrays of an index that :func:`save_sidecar` wrote, if it has the same stamp."""
    try:
        with np.load(sidecar, allow_pickle=False) as arrays:
            if np.array_equal(arrays["stamp"], stamp):
                return [arrays[name] for name in names]
    except Exception:  # zipfile raises almost anything on damaged bytes
        pass  # none there, or a broken one: scan again
    return None


def save_sidecar(
    sidecar: pathlib.Path, stamp: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write an index beside the file it is of, if the directory allows it.

    Atomic, so that readers never see half of one, also when several processes write it at once.

    Args:
      sidecar: where to.
      stamp: int64[n], what an index is valid for.
      arrays: the index.
    """
    temporary = sidecar.with_name(f"{sidecar.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, stamp=stamp, **arrays)
        os.replace(temporary, sidecar)
    except OSError:
        # On a read-only file system even removing what is not there is an error.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# Size and time of the last change of a file: others when it is.
Stamp = tuple[int, int]


class _File(io.FileIO):
    """A file that is closed with its last reader, as one that is meant to be."""

    def __del__(self) -> None:
        self.close()


class FileCache:
    """Open files by path, the least recently used one dropped first.

    A dropped file is closed when the last thread that still reads from it lets go of it.
    """

    def __init__(self, limit: int = 128):
        self._limit = limit
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()

    def pread(self, path: str, size: int, offset: int) -> bytes:
        """``size`` bytes at ``offset``; fewer where the file ends.

        Raises:
          OSError: the file is not there or can't be reached.
        """
        if remote.is_remote(path):
            return remote.read_range(path, offset, size)
        file = self._opened(path)  # as long as it has a name here it is not closed
        return os.pread(file.fileno(), size, offset)

    def stamp(self, path: str) -> Stamp:
        """What an open local file is now; zeros for a remote one, which would have to be asked.

        Raises:
          OSError: the file is not there.
        """
        if remote.is_remote(path):
            return 0, 0
        file = self._opened(path)
        found = os.fstat(file.fileno())
        return found.st_size, found.st_mtime_ns

    def forget(self, path: str) -> None:
        """Open the file anew for the next reader."""
        with self._lock:
            self._files.pop(path, None)

    def _opened(self, path: str) -> _File:
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File(path, "rb")
                if len(self._files) > self._limit:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(path)
        return file


class TFRecordReader:
    """Bytes of record ``i`` of a list of TFRecord files.

    Args:
      paths: the files, in order.
      lengths: number of records in each.
      max_indices: how many files' indices are kept in memory (16 bytes a record). A window of the
        shuffled order has records of a thousand places.
    """

    def __init__(self, paths: Iterable[str], lengths: Iterable[int], max_indices: int = 1200):
        self._paths = list(paths)
        self._starts = [0, *itertools.accumulate(int(length) for length in lengths)]
        self._files = FileCache()
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._max_indices = max_indices
        self._lock = threading.Lock()
        self._shard_locks = [threading.Lock() for _ in self._paths]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> bytes | BadRecord:
        """Bytes of one record, or why there are none."""
        shard = bisect.bisect_right(self._starts, index) - 1  # ten times as fast as numpy's
        position = index - self._starts[shard]
        try:
            return self._read(shard, position)
        except OSError as error:  # a disk or a bucket that fails, or a file that was removed
            return BadRecord("unreachable", str(error))

    def _read(self, shard: int, position: int) -> bytes | BadRecord:
        where = self._index(shard)
        offset, size = int(where.offsets[position]), int(where.sizes[position])
        if offset == _LOST:
            return BadRecord("corrupted", f"lost in a damaged part of {self._paths[shard]}")
        data = self._files.pread(self._paths[shard], size + _FOOTER_BYTES, offset)
        content = data[:size]
        if len(data) != size + _FOOTER_BYTES or (
            _CRC.unpack_from(data, size)[0] != masked_crc(content)
        ):
            return BadRecord(
                "corrupted", f"checksum mismatch at byte {offset} of {self._paths[shard]}"
            )
        return content

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            index = self._indices.get(shard)
            if index is not None:
                self._indices.move_to_end(shard)
                return index
        with self._shard_locks[shard]:  # one scan of a shard, whoever needs it first
            with self._lock:
                index = self._indices.get(shard)
            if index is None:
                length = self._starts[shard + 1] - self._starts[shard]
                index = index_shard(self._paths[shard], length)
                with self._lock:
                    self._indices[shard] = index
                    if len(self._indices) > self._max_indices:
                        self._indices.popitem(last=False)
        return index
