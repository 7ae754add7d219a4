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

from jaxclip.data import remote
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
_INDEX_VERSION = 2


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
    dotted = Dotted()
    try:
        with _opened(path) as file, _tar(file) as (tar, size):
            for member in members(tar):
                name = sample_name(member.name) if member.isreg() else None
                part = part_of(name.extension) if name else None
                if name is None or part is None:
                    dotted.add(name)
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
    except tarfile.TarError as error:
        if not keys and _is_compressed(path):
            raise ValueError(
                f"{path} is compressed, which cannot be read in place; unpack it, or use "
                "`jaxclip data import`"
            ) from error
        problem = f"it is damaged after {len(keys)} samples: {error}"
    table = np.array(offsets, np.int64).reshape(-1, len(PARTS))
    apart = _apart(keys, table)
    if apart:
        raise ValueError(not_adjacent(path, apart))
    if not problem and (dotted.count or (dotted.total and not keys)):
        problem = dotted.problem()
    return TarIndex(
        np.array(keys, np.bytes_),
        table,
        np.array(sizes, np.int64).reshape(-1, len(PARTS)),
        np.array(problem.encode("utf-8"), np.bytes_),
    )


class Dotted:
    """Counts pictures that belong to no sample for the dots in their names.

    Attributes:
      count: pictures like ``img_1.5.png``.
      total: those and pictures like ``0001.mask.png``, which may well be there on purpose.
    """

    def __init__(self) -> None:
        self.count = self.total = 0
        self._first: SampleName | None = None

    def add(self, name: SampleName | None) -> None:
        """Note a file that none of the samples has a use for."""
        end = name.extension.rpartition(".")[2] if name else ""
        if name is None or end == name.extension or end not in IMAGE_EXTENSIONS:
            return
        meant = name.extension.partition(".")[0].isalpha()
        if self._first is None or (self.count == 0 and not meant):
            self._first = name
        self.total += 1
        self.count += not meant

    def problem(self) -> str:
        """What is wrong, in one line."""
        assert self._first is not None
        key, extension = self._first
        return (
            f"{self.count or self.total} pictures are left out: a sample's name ends at its first "
            f"dot, so {key}.{extension} is file {extension!r} of sample {key!r} and has no "
            "partner; rename the files without dots inside"
        )


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


def _is_compressed(path: str | os.PathLike[str]) -> bool:
    with _opened(path) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
