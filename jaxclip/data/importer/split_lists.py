"""Lists of pictures that say which split each belongs to, beside folders that are classes.

Known are a list for each split, as Food-101 (``meta/test.txt``), DTD (``labels/test1.txt``), SUN397
(``Testing_01.txt``) and Birdsnap (``test_images.txt``) have them, and CUB's and NABirds'
``images.txt`` with ``train_test_split.txt``.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator

from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import SPLITS

# Where lists are, beside the folder itself.
_FOLDERS = ("", "meta", "labels", "splits")
# Of several partitions the first is taken.
_LIST = re.compile(rf"({'|'.join(SPLITS)})(_?0?1|_images|_list)?\.txt", re.IGNORECASE)
_NUMBERED, _ASSIGNED = "images.txt", "train_test_split.txt"


def of_folder(folder: pathlib.Path) -> dict[str, str]:
    """The split of each picture that a list names, by what :func:`name_of` makes of its path."""
    found: dict[str, str] = {}
    for place in _FOLDERS:
        files = (folder / place).iterdir() if (folder / place).is_dir() else ()
        # That of train.txt goes before that of trainval.txt.
        for file in sorted(files, key=lambda file: ("trainval" not in file.name.lower(), file)):
            if match := _LIST.fullmatch(file.name):
                split = match[1].lower().removesuffix("ing")
                found.update((name_of(line), split) for line in _lines(file) if "/" in line)
    numbered, assigned = folder / _NUMBERED, folder / _ASSIGNED
    if not found and numbered.is_file() and assigned.is_file():
        names = dict(_pairs(numbered))
        for number, is_training in _pairs(assigned):
            if number in names:
                found[name_of(names[number])] = "train" if is_training == "1" else "test"
    return found


def name_of(path: str) -> str:
    """A picture's name as lists are compared: with its last folder, without its ending."""
    stem, ending = os.path.splitext(path)
    stem = stem if ending.lower() in IMAGE_SUFFIXES else path
    return "/".join(stem.replace("\\", "/").rsplit("/", 2)[-2:])


def _pairs(file: pathlib.Path) -> Iterator[tuple[str, str]]:
    for line in _lines(file):
        first, blank, rest = line.partition(" ")
        if blank:
            yield first, rest.strip()


def _lines(file: pathlib.Path) -> Iterator[str]:
    with file.open(encoding="utf-8", errors="replace") as text:
        yield from filter(None, map(str.strip, text))
