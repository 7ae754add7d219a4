"""Names of the files in an archive, by folder."""

from __future__ import annotations

import array
import bisect
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from jaxclip.data.naming import is_hidden
from jaxclip.data.record import BadRecord

# Folders within each other; those of more are no person's, and readers go into them one by one.
_DEEPEST = 100


class ArchiveIndex:
    """The files of an archive, each a name and a number, about 95 bytes.

    Names are in Unicode, with ``/`` between folders; ``""`` is the archive itself. Hidden files are
    left out.

    Args:
      file: the archive.

    Attributes:
      file: the archive.
      problems: what can't be read of it.
    """

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.problems: list[BadRecord] = []
        self._files: dict[str, tuple[list[str], array.array[int]]] = {"": ([], array.array("Q"))}
        self._folders: dict[str, set[str]] = {"": set()}

    def _add(self, name: str, position: int) -> bool:
        """Note an entry, a folder if it ends in ``/``; whether it is a file that counts."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            detail = f"{self.file} holds {name!r}, which lies outside of the archive's folder"
            self.problems.append(BadRecord("bad_row", detail, name))
            return False
        if len(parts) > _DEEPEST:
            detail = f"{self.file} holds {name[:40]!r}…, within more than {_DEEPEST} folders"
            self.problems.append(BadRecord("bad_row", detail, name[:_DEEPEST]))
            return False
        if not parts or any(map(is_hidden, parts)):
            return False
        is_folder = name.endswith("/")
        folder = "/".join(parts if is_folder else parts[:-1])
        self._add_folder(folder)
        if not is_folder:
            names, positions = self._files[folder]
            names.append(parts[-1])
            positions.append(position)
        return not is_folder

    def _add_folder(self, folder: str) -> None:
        while folder not in self._folders:
            self._folders[folder] = set()
            self._files[folder] = ([], array.array("Q"))
            above, _, last = folder.rpartition("/")
            self._add_folder(above)
            self._folders[above].add(last)

    def _sort(self) -> None:
        """Bring the names in order, once all are there."""
        for folder, (names, positions) in self._files.items():
            order = sorted(range(len(names)), key=names.__getitem__)
            sorted_positions = array.array("Q", (positions[i] for i in order))
            self._files[folder] = ([names[i] for i in order], sorted_positions)

    def _position(self, path: str) -> int | None:
        folder, _, name = path.rpartition("/")
        names, positions = self._files.get(folder, ([], array.array("Q")))
        place = bisect.bisect_right(names, name)  # of several the last one, as unpacking leaves it
        return positions[place - 1] if place and names[place - 1] == name else None

    def is_folder(self, path: str) -> bool:
        """Whether there is such a folder."""
        return path in self._folders

    def folders(self, path: str = "") -> set[str]:
        """Names of the folders in one that is there."""
        return self._folders[path]

    def files(self, path: str = "") -> Iterator[str]:
        """Names of the files in a folder that is there, sorted."""
        names = self._files[path][0]
        for i, name in enumerate(names):
            if i + 1 == len(names) or names[i + 1] != name:
                yield name

    def walk(self) -> Iterator[str]:
        """Paths of all files."""
        for folder in self._files:
            yield from (f"{folder}/{name}" if folder else name for name in self.files(folder))

    def is_file(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._position(path) is not None

    def size(self, path: str) -> int:
        """How many bytes a file has, as the archive declares it."""
        raise NotImplementedError

    def open(self, path: str) -> BinaryIO:
        """A file as a stream of its own.

        Raises:
          FileNotFoundError: there is none.
          OSError: without a number, where it is damaged or needs a password, from reading too.
        """
        raise NotImplementedError

    def read(self, path: str) -> bytes:
        """All bytes of a file; raises OSError as :meth:`open`."""
        raise NotImplementedError
