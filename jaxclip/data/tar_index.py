"""Where the files of the samples of a WebDataset tar are: one pass over its headers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from jaxclip.data import decode, remote
from jaxclip.data.tfrecord import load_sidecar, save_sidecar, stamp_and_sidecar

_LOG = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "jfif", "png", "apng", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm", "ico",
)  # fmt: skip
TEXT_EXTENSIONS = ("txt", "text", "caption")
JSON_EXTENSION = "json"
LABEL_EXTENSION = "cls"

# Columns of an index: where the image, the text, the JSON file and the label of a sample start, and
# their sizes; -1 = there is none.
PARTS = ("image", "text", "json", "label")
NONE = -1
# Change when an index holds something else than before.
_INDEX_VERSION = 3


# Bytes that tell what a file is; those behind the end of a tar among which another one would begin;
# endings of files that are named in an error.
_BEGIN, _PADDING, _NAMED_ENDINGS = 1024, 64 << 10, 6
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


def part_of(extension: str) -> str | None:
    """Which of :data:`PARTS` a file is, or None if none we use."""
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension in TEXT_EXTENSIONS:
        return "text"
    return {JSON_EXTENSION: "json", LABEL_EXTENSION: "label"}.get(extension)


class TarIndex(NamedTuple):
    """Where the files of the samples of one tar are.

    Attributes:
      keys: bytes[n], UTF-8.
      offsets: int64[n, 4], of image, text, JSON and label; -1 = the sample has none.
      sizes: int64[n, 4].
      problem: bytes[], what is wrong with the whole tar, in UTF-8; empty if nothing is.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    problem: np.ndarray


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


def _scan(path: str | os.PathLike[str]) -> TarIndex:
    keys: list[bytes] = []
    offsets: list[list[int]] = []
    sizes: list[list[int]] = []
    problem = ""
    others = Others()
    try:
        with _opened(path) as file, _tar(file) as (tar, size):
            for member in members(tar):
                name = sample_name(member.name) if member.isreg() else None
                part = part_of(name.extension) if name else None
                if name is None or part is None:
                    others.add(member, name)
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
                key = name.key.encode("utf-8", "replace")
                if not keys or keys[-1] != key:
                    keys.append(key)
                    offsets.append([NONE] * len(PARTS))
                    sizes.append([0] * len(PARTS))
                column = PARTS.index(part)
                if offsets[-1][column] == NONE:
                    offsets[-1][column], sizes[-1][column] = member.offset_data, member.size
            if goes_on(file, tar.offset):
                problem = GOES_ON
    except tarfile.TarError as error:
        begin = _begin(path)
        if not keys and begin.startswith(_COMPRESSED):
            raise ValueError(
                f"{path} is compressed, which cannot be read in place; unpack it, or use "
                "`jaxclip data import`"
            ) from error
        problem = f"it is damaged after {len(keys)} samples: {error}" if keys else no_tar(begin)
    table = np.array(offsets, np.int64).reshape(-1, len(PARTS))
    apart = _apart(keys, table)
    if apart:
        raise ValueError(not_adjacent(path, apart))
    if not problem:
        problem = others.problem(bool(keys))
    return TarIndex(
        np.array(keys, np.bytes_),
        table,
        np.array(sizes, np.int64).reshape(-1, len(PARTS)),
        np.array(problem.encode("utf-8"), np.bytes_),
    )


class Others:
    """What is wrong with the files in a tar that none of the samples has a use for.

    Pictures like ``img_1.5.png`` belong to no sample for the dots in their names; those like
    ``0001.mask.png`` may well be there on purpose.
    """

    def __init__(self) -> None:
        self._count = self._total = self._links = 0
        self._first: SampleName | None = None
        self._link = ""
        self._endings: dict[str, None] = {}

    def add(self, member: tarfile.TarInfo, name: SampleName | None) -> None:
        """Note a file; ``name`` is None for one that can't belong to a sample."""
        if member.issym() or member.islnk():
            linked = sample_name(member.name)
            if linked is not None and part_of(linked.extension) == "image":
                self._links, self._link = self._links + 1, self._link or member.name
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
        if self._first is not None and (self._count or not has_samples):
            key, extension = self._first
            return (
                f"{self._count or self._total} pictures are left out: a sample's name ends at its "
                f"first dot, so {key}.{extension} is file {extension!r} of sample {key!r} and has "
                "no partner; rename the files without dots inside"
            )
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
    return f"it is no tar, but {decode.kind_of(begin)}" if begin else "it is empty"


def _begin(path: str | os.PathLike[str]) -> bytes:
    with _opened(path) as file:
        return file.read(_BEGIN)
