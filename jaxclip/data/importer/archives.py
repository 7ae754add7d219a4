"""Archives as the folders that they would be if they were unpacked where they are.

That is ZIP archives, and tars of pictures that are no WebDataset.

:mod:`jaxclip.data.importer.folders` has the paths that go through them.
"""

from __future__ import annotations

import collections
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from jaxclip.data import file_kinds, tar_index
from jaxclip.data.importer import tar_tree, zip_index
from jaxclip.data.importer.archive_index import ArchiveIndex
from jaxclip.data.importer.folders import UnpackedPath, unwrapped, walk
from jaxclip.data.importer.items import Cursor, Item, KnowsClasses, Reader, files_stamp
from jaxclip.data.naming import is_hidden, split_in_name
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

# How many files of an archive are looked for on the disk at least, to see whether it is unpacked
# already.
_SAMPLE = 16
# How many of the archives the log names.
_NOTES = 4
# Where a reader's cursors end and those of what is wrong with the archives begin.
_AFTER = 1 << 40


ZIP = (zip_index.ENDING,)
ALL = (*ZIP, tar_tree.ENDING)


def is_archive(path: pathlib.PurePath, kinds: Sequence[str] = ZIP) -> bool:
    """Whether a file is an archive by its name."""
    return path.suffix.lower() in kinds and not is_hidden(path.name)


def _index(file: pathlib.Path, encoding: str) -> ArchiveIndex:
    if file.suffix.lower() == tar_tree.ENDING:
        return tar_tree.TarTree(file)
    return zip_index.ZipIndex(file, encoding)


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
        self._at: dict[str, list[ArchiveIndex]] = {}
        self._hidden = frozenset(map(str, files))
        by_folder: dict[pathlib.Path, list[ArchiveIndex]] = {}
        for file in files:
            try:
                index = _index(file, encoding)
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

    def _note(self, index: ArchiveIndex) -> None:
        self.problems += index.problems
        for name in index.walk():
            if name.lower().endswith(file_kinds.ARCHIVES):
                detail = f"{index.file} holds the archive {name}; unpack {index.file.name} first"
                self.problems.append(BadRecord("undecodable", detail, name))

    def _place(self, folder: pathlib.Path, found: list[ArchiveIndex], *, is_alone: bool) -> None:
        """Decide where the archives of a folder are unpacked."""
        here = [index for index in found if is_alone or not _wants_folder(index)]
        clashing = _clashing(here)
        here = [index for index in here if index not in clashing]
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

    def within(self, path: str) -> Iterator[tuple[ArchiveIndex, str]]:
        """Archives that may have something at a path, each with the path within it."""
        place, inner = os.path.normpath(path) if ".." in path else path, ""
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


def _wants_folder(index: ArchiveIndex) -> bool:
    """Whether an archive is one whose content needs a folder of its own."""
    if any(map(_is_picture, index.files())):
        return True
    has_split = bool(split_in_name(index.file.name))
    if not has_split or any(map(split_in_name, index.folders())):
        return False
    return any(map(_is_picture, index.walk()))


def _clashing(found: Sequence[ArchiveIndex]) -> set[ArchiveIndex]:
    """Archives that have files of the same path as others."""
    tops = collections.Counter(
        name for index in found for name in (*index.folders(), *index.files())
    )
    clashing = set()
    first: dict[int, ArchiveIndex] = {}  # by hashes of paths, which take less memory than these
    for index in found:
        if all(tops[name] == 1 for name in (*index.folders(), *index.files())):
            continue
        for path in index.walk():
            other = first.setdefault(hash(path), index)
            if other is not index:
                clashing |= {index, other}
    return clashing


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1][1:].lower() in tar_index.IMAGE_EXTENSIONS


def _unpacked_to(index: ArchiveIndex, folder: pathlib.Path) -> pathlib.Path | None:
    """Where an archive's files are on the disk already, beside it; None if they are not."""
    some = _some(index, _is_picture) or _some(index, lambda name: True)
    tops = index.folders()
    is_wrapped = len(tops) == 1 and not any(index.files())
    inner = [name.partition("/")[2] for name in some] if is_wrapped else some
    for names, place in itertools.product((some, inner), (folder, folder / index.file.stem)):
        pairs = zip(some, names, strict=True)
        if names and all(_is_copy(place / name, index, path) for path, name in pairs):
            return place
    return None


def _some(index: ArchiveIndex, is_meant: Callable[[str], bool]) -> list[str]:
    """Some of the files, from all over the archive: unpacking may have ended too early."""
    count = sum(map(is_meant, index.walk()))
    step = max(1, count // _SAMPLE)
    return list(itertools.islice(filter(is_meant, index.walk()), step - 1, None, step))


def _is_copy(file: pathlib.Path, index: ArchiveIndex, path: str) -> bool:
    """Whether a file on the disk is of the size of one in an archive."""
    return file.is_file() and file.stat().st_size == index.size(path)


def of_source(
    path: pathlib.Path,
    files: Sequence[str],
    depth: int,
    encoding: str,
    kinds: Sequence[str] = ZIP,
) -> tuple[pathlib.Path, Archives | None]:
    """The path of a source, as it is with its archives unpacked, and these.

    Args:
      path: a folder, an archive, a path within one, or a pattern of archives; anything else has
        none.
      files: the files that a pattern stands for.
      depth: how many folders below a folder are looked into.
      encoding: see :class:`Archives`.
      kinds: endings of the archives that are looked into.

    Raises:
      FileNotFoundError: the archive has no such path.
      ValueError: the one archive is damaged, or needs a password.
    """
    absolute = pathlib.Path(os.path.abspath(path))
    if path.is_dir():
        found = [
            folder / name
            for folder, names in walk(absolute, depth)
            for name in names
            if is_archive(folder / name, kinds)
        ]
        archives = Archives(found, encoding=encoding) if found else None
        if archives and kinds != ZIP:
            archives.problems += [
                BadRecord("undecodable", f"{folder / name} is compressed; unpack it first", name)
                for folder, names in walk(absolute, depth)
                for name in names
                if tar_tree.is_compressed(name)
            ]
    elif within := around(path):
        archives = Archives([within], within, encoding)
        place = archives.path(absolute)
        if not place.exists():
            raise FileNotFoundError(f"{within} holds no {absolute.relative_to(within)}")
        return place, archives
    elif files and all(is_archive(pathlib.Path(file), kinds) for file in files):
        found = [pathlib.Path(os.path.abspath(file)) for file in files]
        archives = Archives(found, absolute, encoding)
    else:
        return path, None
    if archives is None:
        return path, None
    root = archives.path(absolute)
    return (root if path.is_dir() else unwrapped(root, depth)), archives


def around(path: pathlib.Path) -> pathlib.Path | None:
    """The archive on the disk that a path leads into (``photos.zip/cats``); None if it does not."""
    absolute = pathlib.Path(os.path.abspath(path))
    if os.path.exists(absolute):
        return None
    return next((p for p in absolute.parents if is_archive(p, ALL) and p.is_file()), None)


def beside(table: pathlib.Path, encoding: str) -> tuple[pathlib.Path, Archives] | None:
    """The path of a table, as it is with the archives in its folder unpacked, and these."""
    if isinstance(table, UnpackedPath):
        return None
    table = pathlib.Path(os.path.abspath(table))
    folders = [table.parent]
    if table.parent.name.lower().startswith("annotation"):  # COCO's; pictures are beside it
        folders.append(table.parent.parent)
    found = [
        file for folder in folders for file in sorted(folder.iterdir()) if is_archive(file, ALL)
    ]
    if not found:
        return None
    archives = Archives(found, encoding=encoding)
    return archives.path(table), archives


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

    def class_names(self) -> Sequence[str]:
        return self._reader.class_names() if isinstance(self._reader, KnowsClasses) else ()

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
