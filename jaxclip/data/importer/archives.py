"""ZIP archives as the folders that they would be if they were unpacked where they are.

A reader takes paths, lists folders by :func:`scan` and opens files by the paths' own methods. Where
a source has archives, its paths are :class:`UnpackedPath`: what is in the archives is there, beside
what is on the disk, and the archives themselves are not. Nothing is written, and no reader knows.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import pathlib
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxclip.data import file_kinds, tar_index
from jaxclip.data.importer.items import Cursor, Item, Reader, files_stamp
from jaxclip.data.importer.zip_index import ENDING, ZipIndex
from jaxclip.data.naming import is_hidden, split_in_name
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

# How many files of an archive are looked for on the disk, to see whether it is unpacked already.
_SAMPLE = 16
# How many of the archives the log names.
_NOTES = 4
# Where a reader's cursors end and those of what is wrong with the archives begin.
_AFTER = 1 << 40


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


def is_archive(path: pathlib.PurePath) -> bool:
    """Whether a file is a ZIP archive by its name."""
    return path.suffix.lower() == ENDING and not is_hidden(path.name)


class Archives:
    """Archives and the folders that they are unpacked to.

    Each is unpacked in the folder it is in, as ``unzip`` would. It gets a folder of its own name in
    there if pictures lie at its top, or if it is named like a split (``train.zip``) and what is in
    it is not; and where files of two archives would have the same name.

    Args:
      files: the archives.
      folder: where all of them are unpacked, in place of the folder that each is in.
      encoding: of names in them that are not UTF-8.

    Attributes:
      files: those that are looked into.
      problems: what can't be read of them.
      notes: what is done with which of them, for the log.

    Raises:
      ValueError: the only archive is damaged, or needs a password.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        folder: pathlib.Path | None = None,
        encoding: str = "utf-8",
    ):
        self.files: list[pathlib.Path] = []
        self.problems: list[BadRecord] = []
        self.notes: list[str] = []
        self._at: dict[str, list[ZipIndex]] = {}
        self._hidden = frozenset(map(str, files))
        by_folder: dict[pathlib.Path, list[ZipIndex]] = {}
        for file in files:
            try:
                index = ZipIndex(file, encoding)
            except (OSError, ValueError) as error:
                if folder is not None and len(files) == 1:
                    raise
                self.problems.append(BadRecord("corrupted", str(error), file.name))
                continue
            self.files.append(file)
            self._note(index)
            by_folder.setdefault(folder or file.parent, []).append(index)
        for place, found in by_folder.items():
            self._place(place, found, is_alone=folder is not None and len(files) == 1)

    def _note(self, index: ZipIndex) -> None:
        for name in index.refused:
            detail = f"{index.file} holds {name!r}, which lies outside of the archive's folder"
            self.problems.append(BadRecord("bad_row", detail, name))
        for name in index.walk():
            if name.lower().endswith(file_kinds.ARCHIVES):
                detail = f"{index.file} holds the archive {name}; unpack {index.file.name} first"
                self.problems.append(BadRecord("undecodable", detail, name))

    def _place(self, folder: pathlib.Path, found: list[ZipIndex], *, is_alone: bool) -> None:
        """Decide where the archives of a folder are unpacked."""
        here = [index for index in found if is_alone or not _wants_folder(index)]
        for one, other in itertools.combinations(here, 2):
            may_clash = one.folders() & other.folders() or set(one.files()) & set(other.files())
            if may_clash and any(map(other.is_file, one.walk())):
                here = [index for index in here if index not in (one, other)]
        for index in found:
            place = folder
            if index not in here:
                is_taken = (folder / index.file.stem).is_file()
                place = folder / (index.file.name if is_taken else index.file.stem)
            if there := _unpacked_to(index, folder):
                self.notes.append(f"{index.file.name} is left out: {there} has its files already")
                self.files.remove(index.file)
                continue
            self._at.setdefault(str(place), []).append(index)
            if not is_alone:
                self.notes.append(f"{index.file.name} is read as if unpacked to {place}")

    def path(self, path: pathlib.Path) -> UnpackedPath:
        """A path below which the archives are unpacked."""
        kind = type("UnpackedPath", (UnpackedPath,), {"archives": self})
        unpacked: UnpackedPath = kind(path)
        return unpacked

    def stand_for(self, path: str) -> bool:
        """Whether a path is that of an archive: in its place there is its content."""
        return path in self._hidden

    def within(self, path: str) -> Iterator[tuple[ZipIndex, str]]:
        """Archives that may have something at a path, each with the path within it."""
        place, inner = path, ""
        while place:
            for index in self._at.get(place, ()):
                yield index, inner
            above, slash, last = place.rpartition("/")
            if not slash or above == place:
                return
            place, inner = above, f"{last}/{inner}" if inner else last

    def places_in(self, folder: str) -> Iterator[str]:
        """Names of the folders in one that archives of their own are unpacked to."""
        for place in self._at:
            above, _, last = place.rpartition("/")
            if above == folder:
                yield last


class UnpackedPath(pathlib.PosixPath):
    """A path on the disk, or of a file or folder in an archive that is taken to be unpacked.

    What is on the disk goes before. Made by :meth:`Archives.path`, which gives the class the
    archives, so that every path made from one has them.
    """

    __slots__ = ()
    archives: Archives

    def _in_archive(self) -> tuple[ZipIndex, str] | None:
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


def _wants_folder(index: ZipIndex) -> bool:
    """Whether an archive is one whose content needs a folder of its own."""
    if any(map(_is_picture, index.files())):
        return True
    has_split = bool(split_in_name(index.file.name))
    if not has_split or any(map(split_in_name, index.folders())):
        return False
    return any(map(_is_picture, index.walk()))


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1][1:].lower() in tar_index.IMAGE_EXTENSIONS


def _unpacked_to(index: ZipIndex, folder: pathlib.Path) -> pathlib.Path | None:
    """Where an archive's files are on the disk already, beside it; None if they are not."""
    first = list(itertools.islice(filter(_is_picture, index.walk()), _SAMPLE))
    first = first or list(itertools.islice(index.walk(), _SAMPLE))
    tops = index.folders()
    is_wrapped = len(tops) == 1 and not any(index.files())
    inner = [name.partition("/")[2] for name in first] if is_wrapped else first
    for names, place in itertools.product((first, inner), (folder, folder / index.file.stem)):
        if names and all(os.path.isfile(place / name) for name in names):
            return place
    return None


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


def of_source(
    path: pathlib.Path, files: Sequence[str], depth: int, encoding: str
) -> tuple[pathlib.Path, Archives | None]:
    """The path of a source, as it is with its archives unpacked, and these.

    Args:
      path: a folder, an archive, or a pattern of archives; anything else has none.
      files: the files that a pattern stands for.
      depth: how many folders below a folder are looked into.
      encoding: see :class:`Archives`.

    Raises:
      ValueError: the one archive is damaged, or needs a password.
    """
    absolute = pathlib.Path(os.path.abspath(path))
    if path.is_dir():
        found = [
            folder / name
            for folder, names in walk(absolute, depth)
            for name in names
            if is_archive(folder / name)
        ]
        archives = Archives(found, encoding=encoding) if found else None
    elif files and all(is_archive(pathlib.Path(file)) for file in files):
        found = [pathlib.Path(os.path.abspath(file)) for file in files]
        archives = Archives(found, absolute, encoding)
    else:
        return path, None
    if archives is None:
        return path, None
    root = archives.path(absolute)
    return (root if path.is_dir() else unwrapped(root, depth)), archives


def beside(table: pathlib.Path, encoding: str) -> tuple[pathlib.Path, Archives] | None:
    """The path of a table, as it is with the archives in its folder unpacked, and these."""
    table = pathlib.Path(os.path.abspath(table))
    folders = [table.parent]
    if table.parent.name.lower().startswith("annotation"):  # COCO's; pictures are beside it
        folders.append(table.parent.parent)
    found = [file for folder in folders for file in sorted(folder.iterdir()) if is_archive(file)]
    if not found:
        return None
    archives = Archives(found, encoding=encoding)
    return archives.path(table), archives


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


class ArchiveReader:
    """A reader of what is in archives, and of what is wrong with these, which comes last.

    Args:
      reader: of the files.
      archives: where they are.
    """

    def __init__(self, reader: Reader, archives: Archives):
        self._reader = reader
        self._archives = archives

    def stamp(self) -> str:
        return f"{self._reader.stamp()}+{files_stamp(self._archives.files)}"

    def fraction(self) -> float | None:
        return self._reader.fraction()

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        notes = self._archives.notes
        if notes:
            more = f"; and {len(notes) - _NOTES} more" if len(notes) > _NOTES else ""
            _LOG.warning("archives: %s%s", "; ".join(notes[:_NOTES]), more)
        if start.file < _AFTER:
            yield from self._reader.items(start)
        first = max(0, start.file - _AFTER)
        for number, problem in enumerate(self._archives.problems[first:], first + 1):
            yield Cursor(_AFTER + number, 0), problem
