"""Finds the picture files that a table names."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

from jaxclip.data import tar_index

IMAGE_SUFFIXES = frozenset(
    f".{ending}" for ending in (*tar_index.IMAGE_EXTENSIONS, "jpe", "pgm", "pnm")
)
# Folders beside a table that are looked into, and names that decide which of them it is.
_MAX_FOLDERS, _MAX_NAMES = 64, 32


class Pictures:
    """Files by the names in a table.

    Names are relative to the table's folder, or, where nothing is there, to one of the folders in
    it (``Images/``), or beside it if it is called ``annotations`` as COCO's. A name without an
    ending is completed by that of the file.

    Args:
      table: the table.
      names: the first of its names; they tell the folder.
    """

    def __init__(self, table: pathlib.Path, names: Iterable[str] = ()):
        self._folder = table.parent
        first = [name for name, _ in zip(names, range(_MAX_NAMES), strict=False)]
        counts = [(self._count(folder, first), folder) for folder in _folders(table)]
        best = max((count for count, _ in counts), default=0)
        self.has_some = best > 0
        if best:
            self._folder = next(folder for count, folder in counts if count == best)

    def find(self, name: str) -> pathlib.Path:
        """The file of that name; where it would be if there is none."""
        return _file(self._folder, name) or self._folder / name

    def _count(self, folder: pathlib.Path, names: list[str]) -> int:
        return sum(_file(folder, name) is not None for name in names)


def _folders(table: pathlib.Path) -> list[pathlib.Path]:
    above = [table.parent]
    if table.parent.name.lower().startswith("annotation"):
        above.append(table.parent.parent)
    below = []
    for folder in above:
        try:
            inner = sorted(each.path for each in os.scandir(folder) if each.is_dir())
        except OSError:
            continue
        below += [pathlib.Path(path) for path in inner[:_MAX_FOLDERS]]
    return above + below


def _file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    names = [name]
    if "\\" in name:
        names.append(name.replace("\\", "/"))  # written on Windows
    try:
        for each in names:
            file = folder / each
            if file.is_file():
                return file
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                endings = [f"{file.name}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
                found = next(
                    (file.with_name(e) for e in endings if file.with_name(e).is_file()), None
                )
                if found:
                    return found
    except (OSError, ValueError):  # a name with a null byte, or longer than a name can be
        return None
    return None
