"""Where the files of the samples of a WebDataset tar are: one pass over its headers."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from jaxclip.data import file_kinds, remote, tar_headers
from jaxclip.data.tfrecord import bytes_of, load_sidecar, save_sidecar, stamp_and_sidecar

_LOG = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jpe", "jfif", "pjpeg", "pjp", "png", "apng", "webp", "avif", "gif", "bmp",
    "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "ico", "cur",
)  # fmt: skip
TEXT_EXTENSIONS = ("txt", "text", "caption")
JSON_EXTENSION = "json"
LABEL_EXTENSIONS = ("cls", "class", "label")

# Which files of a sample an index knows: its picture, JSON file, label, and texts by their endings.
PARTS = ("image", JSON_EXTENSION, "label", *TEXT_EXTENSIONS)
NONE = -1
# Change when an index holds something else than before.
_INDEX_VERSION = 6

# Of the endings that we know the longest in letters: jpeg.caption, caption.caption.
_LONGEST_ENDING = 15
# Bytes that tell what a file is; those behind the end of a tar among which another one would begin;
# endings of files that are named in an error.
_BEGIN, _PADDING, _NAMED_ENDINGS = 1024, tar_headers.PADDING, 6
_MAGIC = slice(257, 262)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
GOES_ON = (
    "another tar stands behind its end, which is left out; unpack each on its own, or join tars "
    "with `tar -A`"
)


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


@functools.lru_cache(maxsize=1024)
def plain_ending(extension: str) -> str:
    """The ending that a file might as well have: ``png.txt`` (beside ``1.png``), ``caption.txt``
    and ``text.txt`` are ``txt``, ``cls.txt`` is ``cls``, ``image.png`` is ``png``."""
    first, dot, last = extension.partition(".")
    if last in (*TEXT_EXTENSIONS, JSON_EXTENSION):
        if first in (*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS):
            return last
        if first in LABEL_EXTENSIONS and last != JSON_EXTENSION:
            return first
    is_picture = dot and first in ("image", "img") and last in IMAGE_EXTENSIONS
    return last if is_picture else extension


def part_of(extension: str) -> str | None:
    """What a file is ("image", "text", "json", "label"), or None if none we use."""
    extension = plain_ending(extension)
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in TEXT_EXTENSIONS:
        return "text"
    return "label" if extension in LABEL_EXTENSIONS else {JSON_EXTENSION: "json"}.get(extension)


class TarIndex(NamedTuple):
    """Where the files of the samples of one tar are.

    Attributes:
      keys: bytes[n], UTF-8.
      offsets: int64[n, p], of the files of a sample; -1 = it has none.
      sizes: uint32[n, p], or int64 where there are larger ones.
      parts: bytes[p], which of :data:`PARTS` a column is; those that no sample has are left out.
      problem: bytes[], what is wrong with the whole tar, in UTF-8; empty if nothing is.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    parts: np.ndarray
    problem: np.ndarray

    def files(self, row: int) -> dict[str, tuple[int, int]]:
        """(offset, size) of the files of a sample, by what they are."""
        found = zip(
            self.parts.tolist(), self.offsets[row].tolist(), self.sizes[row].tolist(), strict=True
        )
        return {part.decode(): (offset, size) for part, offset, size in found if offset != NONE}


def index_tar(path: str | os.PathLike[str]) -> TarIndex:
    """Scan the headers of a tar, or load what an earlier scan left beside it.

    A damaged tar is indexed up to the damage, with a warning, each time.

    Raises:
      ValueError: the tar is compressed, or the files of its samples are not side by side.
    """
    stamp, sidecar = stamp_and_sidecar(path, _INDEX_VERSION)
    loaded = load_sidecar(sidecar, stamp, TarIndex._fields)
    index = TarIndex(*loaded) if loaded is not None else _scan(path)
    if loaded is None:
        save_sidecar(sidecar, stamp, index._asdict())
    problem = bytes(index.problem.item()).decode("utf-8")
    if problem:
        _LOG.warning("%s: %s", path, problem)
    return index


def _opened(path: str | os.PathLike[str]) -> IO[bytes]:
    """A tar's bytes: of a remote one all at once; a request for each header would take longer."""
    if remote.is_remote(path):
        return io.BytesIO(remote.read(os.fspath(path)) or b"")
    return open(path, "rb")


@contextlib.contextmanager
def _tar(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, int]]:
    """A plain tar and its number of bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        yield tar, size


class _Found(NamedTuple):
    """The files of samples in a tar, in order.

    Attributes:
      keys: bytes[n], of the samples that they are of.
      columns: int[n], which of :data:`PARTS` they are.
      offsets: int64[n].
      sizes: int64[n].
      others: those that no sample has a use for.
      problem: why there are no more.
    """

    keys: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    others: Others
    problem: str = ""


def _scan(path: str | os.PathLike[str]) -> TarIndex:
    with bytes_of(path) as data:
        files = tar_headers.read(data)
    found = _one_by_one(path) if files is None else _at_once(files)
    keys, table, sizes = _samples(found)
    apart = _apart(keys.tolist(), table)
    if apart:
        raise ValueError(not_adjacent(path, apart))
    problem = found.problem or found.others.problem(len(keys) > 0)
    used = (table != NONE).any(axis=0)
    small = np.uint32 if sizes.max(initial=0) < 2**32 else np.int64
    return TarIndex(
        keys,
        table[:, used],
        sizes[:, used].astype(small),
        np.array(PARTS, np.bytes_)[used],
        np.array(problem.encode("utf-8"), np.bytes_),
    )


def _samples(found: _Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys bytes[n], offsets and sizes int64[n, len(PARTS)] of samples: of runs of one key."""
    first = np.ones(len(found.keys), bool)
    first[1:] = found.keys[1:] != found.keys[:-1]
    row = np.cumsum(first) - 1
    shape = (int(first.sum()), len(PARTS))
    offsets, sizes = np.full(shape, NONE, np.int64), np.zeros(shape, np.int64)
    # Of two files of one kind the first counts.
    _, chosen = np.unique(row * len(PARTS) + found.columns, return_index=True)
    where = row[chosen], found.columns[chosen]
    offsets[where], sizes[where] = found.offsets[chosen], found.sizes[chosen]
    return found.keys[first], offsets, sizes


def _column_of(extension: str) -> int:
    """Which of :data:`PARTS` a file is, -1 for none."""
    part = part_of(extension)
    if part is None:
        return -1
    return PARTS.index(plain_ending(extension) if part == "text" else part)


def _at_once(files: tar_headers.Files) -> _Found:
    """Of all names at once, as :func:`sample_name` takes apart one."""
    count, width = files.names.shape
    places = np.arange(width, dtype=np.int16)
    slash = np.where(files.names == ord("/"), places, np.int16(-1)).max(axis=1, initial=-1)
    is_dot = (files.names == ord(".")) & (places > slash[:, None])
    dot = is_dot.argmax(axis=1)
    named = is_dot.any(axis=1) & (dot > slash + 1)
    # Endings of up to eight letters as numbers; few are longer.
    longest = np.pad(files.names, ((0, 0), (0, _LONGEST_ENDING + 2)))
    endings = longest[np.arange(count)[:, None], dot[:, None] + np.arange(1, _LONGEST_ENDING + 2)]
    numbers = np.ascontiguousarray(endings[:, :8]).view(np.uint64)[:, 0]
    columns = np.full(count, -1)
    for number in np.unique(numbers):
        extension = number.tobytes().rstrip(b"\0").decode("ascii").lower()
        columns[numbers == number] = _column_of(extension)
    for row in np.flatnonzero(endings[:, 8]):
        ending = endings[row].tobytes().rstrip(b"\0").decode("ascii").lower()
        columns[row] = _column_of(ending) if len(ending) <= _LONGEST_ENDING else -1
    columns[~named] = -1
    others = Others()
    for name in files.names[columns < 0]:
        others.add_file(name.tobytes().rstrip(b"\0").decode("ascii"))
    used = columns >= 0
    keys = np.ascontiguousarray(files.names[used] * (places < dot[used, None])).view(f"S{width}")
    # As narrow as they can be: an index is kept in memory.
    keys = keys[:, 0].astype(f"S{max(1, int(dot[used].max(initial=1)))}")
    return _Found(keys, columns[used], files.offsets[used], files.sizes[used], others)


def _one_by_one(path: str | os.PathLike[str]) -> _Found:
    keys: list[bytes] = []
    rows: list[tuple[int, int, int]] = []
    problem = ""
    others = Others()
    try:
        with _opened(path) as file, _tar(file) as (tar, size):
            for member in members(tar):
                name = sample_name(member.name) if member.isreg() else None
                column = _column_of(name.extension) if name else -1
                if name is None or column < 0 or member.issparse():
                    others.add(member)
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
                keys.append(name.key.encode("utf-8", "replace"))
                rows.append((column, member.offset_data, member.size))
            if goes_on(file, tar.offset):
                problem = GOES_ON
                if size < tar.offset + tar_headers.BLOCK:  # less than a header
                    problem = f"it is cut off after {len(dict.fromkeys(keys))} samples"
    except tarfile.TarError as error:
        with _opened(path) as file:
            begin = file.read(_BEGIN)
        if not keys and begin.startswith(_COMPRESSED):
            raise ValueError(
                f"{path} is compressed, which cannot be read in place; unpack it, or use "
                "`jaxclip data import`"
            ) from error
        count = len(dict.fromkeys(keys))
        is_tar = bool(keys) or begin[_MAGIC].startswith(b"ustar")
        problem = f"it is damaged after {count} samples: {error}" if is_tar else no_tar(begin)
    columns, offsets, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    return _Found(np.array(keys, np.bytes_), columns, offsets, sizes, others, problem)


class Others:
    """What is wrong with the files in a tar that none of the samples has a use for.

    Pictures like ``img_1.5.png`` belong to no sample for the dots in their names; those like
    ``0001.mask.png`` may well be there on purpose.
    """

    def __init__(self) -> None:
        self._count = self._total = self._links = 0
        self._first: SampleName | None = None
        self._link = self._sparse = ""
        self._endings: dict[str, None] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        """Note a file, link or folder."""
        if member.issparse():
            self._sparse = self._sparse or member.name
        elif member.isreg():
            self.add_file(member.name)
        elif member.issym() or member.islnk():
            name = sample_name(member.name)
            if name is not None and part_of(name.extension) == "image":
                self._links, self._link = self._links + 1, self._link or member.name

    def add_file(self, path: str) -> None:
        """Note a file by its path in the tar."""
        name = sample_name(path)
        if name is None:
            return
        if len(self._endings) < _NAMED_ENDINGS:
            self._endings[name.extension] = None
        end = name.extension.rpartition(".")[2]
        if end == name.extension or end not in IMAGE_EXTENSIONS:
            return
        meant = name.extension.partition(".")[0].isalpha()
        if self._first is None or (self._count == 0 and not meant):
            self._first = name
        self._total += 1
        self._count += not meant

    def problem(self, has_samples: bool) -> str:
        """What is wrong, in one line; empty if nothing is."""
        if self._links:
            return (
                f"{self._links} pictures are links to other files ({self._link}), which are left "
                "out; make the tar with `tar --dereference --hard-dereference`"
            )
        if self._sparse:
            return (
                f"{self._sparse} is a sparse file, which cannot be read in place; make the tar "
                "without --sparse, or import it"
            )
        if self._first is not None and (self._count or not has_samples):
            key, extension = self._first
            return (
                f"{self._count or self._total} pictures are left out: a sample's name ends at its "
                f"first dot, so {key}.{extension} is file {extension!r} of sample {key!r} and has "
                "no partner; rename the files without dots inside"
            )
        if not has_samples and any(each.startswith("tar") for each in self._endings):
            return "it holds other tars; unpack it, and read those"
        if self._endings and not has_samples:
            return (
                f"its files end in .{', .'.join(self._endings)}; a sample has a picture "
                f"(.{', .'.join(IMAGE_EXTENSIONS)}) and a .txt or .json"
            )
        return ""


def not_adjacent(path: str | os.PathLike[str], key: str) -> str:
    """The error about a tar whose samples are torn apart."""
    return (
        f"{path}: the files of a sample are not side by side (those of {key!r} are apart); make "
        "the tar with `tar --sort=name`"
    )


def _apart(keys: list[bytes], offsets: np.ndarray) -> str:
    """The first sample whose picture and caption stand in two places; empty if there is none."""
    if len(set(keys)) == len(keys):
        return ""
    has_picture = offsets[:, 0] != NONE
    whole = has_picture & (offsets[:, 1:] != NONE).any(axis=1)
    with_picture = {key for key, has in zip(keys, has_picture, strict=True) if has}
    for key, has, is_whole in zip(keys, has_picture, whole, strict=True):
        if not has and not is_whole and key in with_picture:
            return key.decode("utf-8")
    return ""


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one by one, not kept: the list that tarfile keeps of them would only grow."""
    while (member := tar.next()) is not None:
        yield member
        tar.members = []  # type: ignore[attr-defined]


def goes_on(file: IO[bytes], end: int) -> bool:
    """Whether another tar stands soon behind the end of one, as ``cat a.tar b.tar`` makes it.

    Args:
      file: the tar.
      end: where it ends; where the file is if that can't be moved.
    """
    if file.tell() != end:
        file.seek(end)
    return bool(file.read(_PADDING).strip(b"\0"))


def no_tar(begin: bytes) -> str:
    """What a file is that is no tar, in one line, by its first bytes."""
    return f"it is no tar, but {file_kinds.kind_of(begin)}" if begin else "it is empty"
