"""Finds the picture files that a table names."""

from __future__ import annotations

import itertools
import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from jaxclip.data import tar_index
from jaxclip.data.importer.folders import scan
from jaxclip.data.importer.inline import is_inline
from jaxclip.data.naming import is_hidden, split_in_name

IMAGE_SUFFIXES = frozenset(f".{ending}" for ending in tar_index.IMAGE_EXTENSIONS)
# The same, for patterns.
ENDINGS = "|".join(map(re.escape, sorted(IMAGE_SUFFIXES, reverse=True)))
# Folders beside a table that are looked into, and names that decide which of them it is; fewer
# where the names have to be guessed at.
_MAX_FOLDERS, _MAX_NAMES, _MAX_GUESSED = 64, 32, 4
# Names of Label Studio's files, of a folder or uploaded to it.
_LABEL_STUDIO = re.compile(r"/?data/(?:local-files/\?d=|upload/(?:\d+/)?(?:[0-9a-f]{8}-)?)(.+)")
# Folders of what is drawn over pictures, under the pictures' names.
_MASKS = frozenset((
    "trimaps", "masks", "mask", "segmentationclass", "segmentationobject", "gtfine", "annotations",
    "annotation",
))  # fmt: skip
_IMAGENET = re.compile(r"(n\d{8})_\d+(\.|$)")
# COCO's pictures are called by their ids, in 2014 and 2015 with the part that they are of.
_ID_DIGITS, _COCO_2014 = 12, ("train2014", "val2014", "test2015")


class Pictures:
    """Files by the names in a table.

    Names are relative to the table's folder, or, where nothing is there, to one of the folders in
    it (``Images/``), or beside it if it is called ``annotations`` as COCO's. Where nothing is there
    either, the beginning that all names have in common is taken to be the place of the pictures on
    another machine (``/home/me/photos/1.jpg``, ``C:\\photos\\1.jpg``), and left out as far as that
    helps, all folders if need be. A name is understood as :func:`_spellings` has it; one without an
    ending, or with another one, is completed by that of the file. Pictures may be in several
    folders of one name but for numbers behind it (``images_001/``, ``images_002/``).

    Args:
      table: the table.
      names: the first of its names; they tell the folder.

    Attributes:
      has_some: whether any of the first names is there.
    """

    def __init__(self, table: pathlib.Path, names: Iterable[str] = ()):
        self._table = table
        self._folder = table.parent
        self._elsewhere = ""
        self._parts: list[pathlib.Path] = []
        first = [name for name, _ in zip(names, range(_MAX_NAMES), strict=False)]
        folders = [] if first and all(map(is_inline, first)) else _folders(table)
        counts = [(self._count(folder, first), folder) for folder in folders]
        if folders and not any(count for count, _ in counts):
            deeper = _folders_in(folders[1:])
            counts += [(self._count(folder, first), folder) for folder in deeper]
        best = max((count for count, _ in counts), default=0)
        self._is_last_only = False
        self.has_some = best > 0 or not folders or self._find_elsewhere(folders, first)
        if best:
            counts.sort(key=lambda each: self._is_drawn(each[1]))
            same = [folder for count, folder in counts if count == best]
            # train/ and val/ may both have a 1.jpg: that of val.csv is in val/.
            split = split_in_name(table.name)
            own = (each for each in same if split and split_in_name(each.name) == split)
            self._folder = next(own, same[0])
            part = _without_numbers(self._folder, table.parent)
            self._parts = [
                folder
                for _, folder in counts
                if folder != self._folder
                and part
                and part == _without_numbers(folder, table.parent)
            ]

    def find(self, name: str) -> pathlib.Path:
        """The file of that name; where it would be if there is none."""
        own = self.relative(name)
        return _file(self._folder, own) or self._in_parts(own) or self._folder / own

    def locate(self, file: pathlib.Path) -> pathlib.Path:
        """A file that should be beside the table, or the one in another folder that it is."""
        return file if file.is_file() else self.find(os.path.relpath(file, self._table.parent))

    def _in_parts(self, name: str) -> pathlib.Path | None:
        """The file of that name in another part of the set, if it is in one only."""
        found = [folder / name for folder in self._parts if _is_file(folder / name)]
        found = found or [file for folder in self._parts if (file := _file(folder, name))]
        return found[0] if len(found) == 1 else None

    def relative(self, name: str) -> str:
        """A name without what is only so on another machine."""
        if self._is_last_only:
            return name.replace("\\", "/").rpartition("/")[2]
        if self._elsewhere:
            return name.replace("\\", "/").removeprefix(self._elsewhere)
        return name

    def _is_drawn(self, folder: pathlib.Path) -> bool:
        """Whether a folder is one of masks, or in one."""
        inner = os.path.relpath(folder, self._table.parent).lower()
        return not _MASKS.isdisjoint(inner.split(os.sep))

    def _count(self, folder: pathlib.Path, names: list[str]) -> int:
        return sum(_file(folder, name) is not None for name in names)

    def _find_elsewhere(self, folders: list[pathlib.Path], names: list[str]) -> bool:
        plain = [name.replace("\\", "/") for name in names]
        parts = zip(*(name.split("/")[:-1] for name in plain), strict=False)
        common = list(itertools.takewhile(lambda each: len(set(each)) == 1, parts))
        for cut in range(1, len(common) + 1):
            prefix = "".join(f"{each[0]}/" for each in common[:cut])
            rest = [name.removeprefix(prefix) for name in plain[:_MAX_GUESSED]]
            for folder in folders:
                if self._count(folder, rest):
                    self._elsewhere, self._folder = prefix, folder
                    return True
        last = [name.rpartition("/")[2] for name in plain]
        if len(set(last)) == len(set(plain)):  # else two of them would be the same file
            for folder in folders:
                if self._count(folder, last[:_MAX_GUESSED]):
                    self._is_last_only, self._folder = True, folder
                    return True
        return False


def pictures_of(opened: Any, file: pathlib.Path, column: str) -> Pictures | None:
    """Where the pictures are that an open Parquet file names in a column; None if it names none."""
    try:
        first = next(opened.iter_batches(_MAX_NAMES, columns=[column]), None)
        values = first.column(0).to_pylist() if first is not None else []
    except (OSError, ValueError):
        return None  # said of the rows
    return pictures_named(values, file)


def pictures_named(values: Iterable[Any], file: pathlib.Path) -> Pictures | None:
    """Where the pictures are that the first cells of a table's column name; None if they name
    none."""
    found = [
        (None if value.get("bytes") else value.get("path")) if isinstance(value, dict) else value
        for value in values
    ]
    names = [name for name in found if isinstance(name, str) and name]
    return Pictures(file, names) if names else None


def _without_numbers(folder: pathlib.Path, root: pathlib.Path) -> tuple[str, ...]:
    """The folders of a path without the numbers at their ends; nothing where one is a number."""
    parts = folder.parts[len(root.parts) :] if folder.is_relative_to(root) else ()
    names = tuple(re.sub(r"[\W_]*\d+$", "", name) for name in parts)
    return names if all(names) else ()


def _is_file(file: pathlib.Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):  # as in _file
        return False


def _folders(table: pathlib.Path) -> list[pathlib.Path]:
    above = [table.parent]
    if table.parent.name.lower().startswith("annotation"):
        above.append(table.parent.parent)
    return above + _folders_in(above)


def _folders_in(folders: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    below = []
    for folder in folders:
        try:
            inner = sorted(
                each.name for each in scan(folder) if each.is_dir() and not is_hidden(each.name)
            )
        except OSError:
            continue
        below += [folder / name for name in inner[:_MAX_FOLDERS]]
    return below[:_MAX_FOLDERS]


def _file(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    try:
        file = folder / name
        if file.is_file():
            return file
        tried = list(_spellings(name))
        for each in tried:
            if (folder / each).is_file():
                return folder / each
        for each in [name, *tried]:
            file = folder / each
            stem = file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name
            for suffix in sorted(IMAGE_SUFFIXES):
                for ending in (suffix, suffix.upper()):
                    if file.with_name(f"{stem}{ending}").is_file():
                        return file.with_name(f"{stem}{ending}")
    except (OSError, ValueError):  # a name with a null byte, or longer than a name can be
        return None
    return None


def _spellings(name: str) -> Iterator[str]:
    """Other ways to write a name, from tables of other systems than the pictures'.

    ``file:`` before it, backslashes (Windows), percent signs (a link), letters with accents in one
    piece or two (macOS), and endings in the other letter case.
    """
    names = [name]
    if name.isdecimal():
        names.append(name.zfill(_ID_DIGITS))
        names += [f"COCO_{part}_{name.zfill(_ID_DIGITS)}" for part in _COCO_2014]
    if match := _IMAGENET.match(name):  # in the folder of its class
        names.append(f"{match[1]}/{name}")
    if name.endswith(".0") and name[:-2].isdecimal():  # of a column with gaps, in pandas
        names += [name[:-2], name[:-2].zfill(_ID_DIGITS)]
    if name.startswith("file:"):
        names.append(urllib.parse.unquote(name.removeprefix("file:").removeprefix("//")))
    if match := _LABEL_STUDIO.fullmatch(name):
        names.append(urllib.parse.unquote(match[1]))
    if "\\" in name:
        names.append(name.replace("\\", "/"))
    if "%" in name:
        names.append(urllib.parse.unquote(name))
    if not name.isascii() or "%" in name:
        names += [unicodedata.normalize(form, each) for each in names for form in ("NFC", "NFD")]
    for each in list(names):
        stem, ending = os.path.splitext(each)
        names += [stem + ending.lower(), stem + ending.upper()]
        folder, last = os.path.split(each)
        names += [os.path.join(folder, last.lower()), os.path.join(folder, last.upper())]
    yield from (each for each in dict.fromkeys(names) if each != name)
