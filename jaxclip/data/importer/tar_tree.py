"""What is in a tar that is no WebDataset, such as one of ImageNet's folders."""

from __future__ import annotations

import io
import os
import pathlib
import re
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

from jaxclip.data import tar_index
from jaxclip.data.importer.archive_index import ArchiveIndex
from jaxclip.data.record import BadRecord

ENDING = ".tar"
_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2|txz|tzst)", re.I)


def is_compressed(name: str) -> bool:
    """Whether a file is a compressed tar by its name."""
    return _COMPRESSED.fullmatch(name) is not None


class TarTree(ArchiveIndex):
    """The files of a tar that is not compressed; one pass over its headers finds them.

    Links to files of the tar are those files.

    Args:
      file: the tar.

    Raises:
      ValueError: it is no tar, or compressed.
      OSError: it cannot be read.
    """

    def __init__(self, file: pathlib.Path):
        super().__init__(file)
        links: list[tuple[str, str]] = []
        with open(file, "rb") as raw:
            begin = raw.read(1024)
            raw.seek(0)
            try:
                archive = tarfile.open(fileobj=raw, mode="r:")  # noqa: SIM115
            except tarfile.ReadError as error:
                raise ValueError(f"{file}: {tar_index.no_tar(begin)}") from error
            try:
                for member in tar_index.members(archive):
                    if member.isdir():
                        self._add(f"{member.name}/", 0)
                    elif member.isreg() and not member.issparse():
                        self._add(member.name, member.offset_data)
                    elif member.islnk():
                        links.append((member.name, member.linkname))
                    elif member.issym():
                        folder = os.path.dirname(member.name)
                        links.append((member.name, os.path.join(folder, member.linkname)))
            except (tarfile.TarError, OSError, ValueError) as error:
                # What came before is there.
                self.problems.append(
                    BadRecord("corrupted", f"{file} is damaged: {error}", file.name)
                )
        self._sort()
        if links:
            self._follow(links)

    def _follow(self, links: Sequence[tuple[str, str]]) -> None:
        """Note links, each a name and where it leads to, as the files that they are."""
        found = [
            (name, self._position(os.path.normpath(target).lstrip("/"))) for name, target in links
        ]
        for (name, position), (_, target) in zip(found, links, strict=True):
            if position is None:
                detail = f"{self.file}: {name} is a link to {target}, which is no file in it"
                self.problems.append(BadRecord("missing_image", detail, name))
            else:
                self._add(name, position)
        self._sort()

    def size(self, path: str) -> int:
        with open(self.file, "rb") as raw:
            return self._find(raw, path)

    def open(self, path: str) -> BinaryIO:
        raw = open(self.file, "rb")  # noqa: SIM115  # the stream closes it
        try:
            size = self._find(raw, path)
        except BaseException:
            raw.close()
            raise
        return io.BufferedReader(_Part(raw, size), 1 << 16)  # type: ignore[type-var, return-value]

    def read(self, path: str) -> bytes:
        with open(self.file, "rb") as raw:
            size = self._find(raw, path)
            data = raw.read(size)
        if len(data) < size:
            raise OSError(f"{self.file} is damaged: it ends after {len(data)} of {size} bytes")
        return data

    def _find(self, raw: BinaryIO, path: str) -> int:
        """Go to a file's first byte; its size."""
        position = self._position(path)
        if position is None:
            raise FileNotFoundError(f"{self.file} holds no {path}")
        raw.seek(position - tarfile.BLOCKSIZE)
        header = raw.read(tarfile.BLOCKSIZE)
        try:
            return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
        except tarfile.HeaderError as error:
            raise OSError(f"{self.file} is damaged: {error}") from error


class _Part(io.RawIOBase):
    """Bytes of a file from where it stands."""

    def __init__(self, raw: BinaryIO, size: int):
        self._raw, self._size = raw, size
        self._begin = raw.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._raw.tell() - self._begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._raw.seek(self._begin + max(0, base + offset))
        return self.tell()

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        left = max(0, min(len(buffer), self._size - self.tell()))
        data = self._raw.read(left)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()
