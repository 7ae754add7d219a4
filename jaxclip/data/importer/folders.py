"""Folders and files of a source, be they on the disk or in archives.

A reader takes paths, lists folders by :func:`scan` and opens files by the paths' own methods. Where
a source has archives, its paths are :class:`UnpackedPath`: what is in the archives is there, beside
what is on the disk, and the archives themselves are not. Nothing is written, and no reader knows.
"""

from __future__ import annotations

import io
import os
import pathlib
import stat
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from jaxclip.data.importer.archive_index import ArchiveIndex
from jaxclip.data.naming import is_hidden, split_in_name


class Entry(NamedTuple):
    """What is in a folder, as ``os.DirEntry`` has it."""

    name: str
    is_folder: bool

    def is_file(self) -> bool:
        return not self.is_folder

    def is_dir(self) -> bool:
        return self.is_folder

    def is_symlink(self) -> bool:
        return False


def scan(folder: pathlib.Path) -> list[Any]:
    """What is in a folder: ``os.DirEntry`` or :class:`Entry`, hidden files too; raises OSError."""
    return folder.scan() if isinstance(folder, UnpackedPath) else list(os.scandir(folder))


def walk(path: pathlib.Path, depth: int) -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Folders below one, none of them hidden, with the names of the files in them, sorted.

    Links are followed once.

    Args:
      path: a folder; it comes first.
      depth: how many folders below it are looked into.
    """
    yield from _walk(path, depth, set())


def _walk(
    path: pathlib.Path, depth: int, seen: set[str]
) -> Iterator[tuple[pathlib.Path, list[str]]]:
    seen.add(os.path.realpath(path))
    try:
        entries = [each for each in scan(path) if not is_hidden(each.name)]
    except OSError:
        return
    yield path, sorted(each.name for each in entries if not each.is_dir())
    for name in sorted(each.name for each in entries if each.is_dir()) if depth else ():
        if os.path.realpath(path / name) not in seen:
            yield from _walk(path / name, depth - 1, seen)


def unwrapped(folder: pathlib.Path, depth: int) -> pathlib.Path:
    """The folder that everything in one is in; one that is called like a split says something."""
    for _ in range(depth):
        try:
            entries = [each for each in scan(folder) if not is_hidden(each.name)]
        except OSError:
            break
        if len(entries) != 1 or not entries[0].is_dir() or split_in_name(entries[0].name):
            break
        folder = folder / entries[0].name
    return folder


def check_on_disk(files: Iterable[pathlib.Path]) -> None:
    """Raise ValueError if one of the files is in an archive, where it can't be read."""
    for file in files:
        archive = file.packed_in() if isinstance(file, UnpackedPath) else None
        if archive is not None:
            raise ValueError(f"{archive} holds {file.name}; unpack {archive.name} first")


class Unpacked(Protocol):
    """Archives that are taken to be unpacked; :class:`jaxclip.data.importer.archives.Archives`."""

    def stand_for(self, path: str) -> bool:
        """Whether a path is that of an archive: in its place there is its content."""

    def within(self, path: str) -> Iterator[tuple[ArchiveIndex, str]]:
        """Archives that may have something at a path, each with the path within it."""

    def places_in(self, folder: str) -> Iterator[str]:
        """Names of the folders in one that archives of their own are unpacked to."""


class UnpackedPath(pathlib.PosixPath):
    """A path on the disk, or of a file or folder in an archive that is taken to be unpacked.

    What is on the disk goes before. Made by ``Archives.path``, which gives the class the
    archives, so that every path made from one has them.
    """

    __slots__ = ()
    archives: Unpacked

    def _in_archive(self) -> tuple[ArchiveIndex, str] | None:
        found = self.archives.within(str(self))
        return next((each for each in found if each[0].is_file(each[1])), None)

    def _is_on_disk(self) -> bool:
        return os.path.isfile(self) and not self.archives.stand_for(str(self))

    def is_dir(self, **kwargs: Any) -> bool:
        text = str(self)
        if any(index.is_folder(inner) for index, inner in self.archives.within(text)):
            return True
        if next(self.archives.places_in(text), None):
            return True
        return os.path.isdir(self)

    def is_file(self, **kwargs: Any) -> bool:
        return self._is_on_disk() or self._in_archive() is not None

    def exists(self, **kwargs: Any) -> bool:
        return self.is_file() or self.is_dir() or super().exists(**kwargs)

    def packed_in(self) -> pathlib.Path | None:
        """The archive that a file is in; None if it is on the disk."""
        found = None if self._is_on_disk() else self._in_archive()
        return None if found is None else found[0].file

    def scan(self) -> list[Any]:
        """See :func:`scan`."""
        there: dict[str, Any] = {}
        text = str(self)
        if os.path.isdir(self):
            with os.scandir(self) as entries:
                there = {
                    each.name: each for each in entries if not self.archives.stand_for(each.path)
                }
        for index, inner in self.archives.within(text):
            if index.is_folder(inner):
                for name in index.folders(inner):
                    there.setdefault(name, Entry(name, True))
                for name in index.files(inner):
                    there.setdefault(name, Entry(name, False))
        for name in self.archives.places_in(text):
            there.setdefault(name, Entry(name, True))
        if not there and not self.is_dir():
            raise FileNotFoundError(f"{self}: no such folder")
        return list(there.values())

    def iterdir(self) -> Generator[UnpackedPath, None, None]:
        yield from (self / entry.name for entry in self.scan())

    def stat(self, **kwargs: Any) -> os.stat_result:
        found = None if self._is_on_disk() else self._in_archive()
        if found is None:
            return super().stat(**kwargs)
        index, inner = found
        status = os.stat(index.file)
        values = list(status[:10])
        values[stat.ST_MODE], values[stat.ST_SIZE] = stat.S_IFREG | 0o444, index.size(inner)
        return os.stat_result(values, {"st_mtime_ns": status.st_mtime_ns})

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        found = None if self._is_on_disk() else self._in_archive()
        if found is None:
            return super().open(mode, *args, **kwargs)
        stream = found[0].open(found[1])
        return stream if "b" in mode else io.TextIOWrapper(stream, *args[1:], **kwargs)

    def read_bytes(self) -> bytes:
        found = None if self._is_on_disk() else self._in_archive()
        return super().read_bytes() if found is None else found[0].read(found[1])
