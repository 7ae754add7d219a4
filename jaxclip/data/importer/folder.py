"""Reader of folders of images: captions in a file beside each, or folders that are classes."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxclip.data import file_kinds, tar_index
from jaxclip.data.importer.folders import scan
from jaxclip.data.importer.items import Cursor, Item, from_fields, printable, read_image
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import SPLITS, TEXT_FIELDS, find, is_hidden, split_in_name, split_of
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

# Endings of files with captions; that of the picture may stand before them (1.jpg.txt).
_TEXT_SUFFIXES = (*(f".{ending}" for ending in tar_index.TEXT_EXTENSIONS), ".tags", ".cap")
# Lines of boxes beside a picture (YOLO's): a class, and four or more numbers.
_BOX = re.compile(rb"\s*\d+(\s+-?[\d.]+){4,}\s*")
# Folders of nothing but captions, beside one of pictures (images/1.jpg, captions/1.txt).
_TEXT_FOLDERS = (
    "captions",
    "caption",
    "texts",
    "text",
    "txt",
    "prompts",
    "text_c10",
    "descriptions",
)
# Names of folders that are no classes beside others that are (Tiny ImageNet's val/images).
_NO_CLASSES = ("images", "imgs", "img")
# Names of folders that are parts of a data set rather than classes (train2017, test_images,
# images_001, and masks beside images).
_PART = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing|images?|imgs?|parts?|batch|shard|chunk|"
    r"annotations?|labels?|masks?)"
    r"([\W\d_]|images?|imgs?|set|part)*|.*[\W_]part[\W_]*\d+",
    re.I,
)


class _Classes(NamedTuple):
    """Which folders are classes.

    Attributes:
      above: how many folders stand above those that are classes or splits (``images/cats/1.jpg``).
      splits: the splits by their folders, which stand above the classes'.
      in_splits: whether there are no classes but those in splits.
    """

    above: int
    splits: dict[str, str]
    in_splits: bool


class TreeReader:
    """Images under a folder, each with its captions in a file of the same name.

    That is ``1.txt``, ``1.caption`` or ``1.jpg.txt``, of which every line is a caption, or
    ``1.json`` with named values, as img2dataset writes it. If there is no such file at all, and all
    images are in subfolders, these are classes (``cats/1.jpg``), or splits with classes in them
    (``train/cats/1.jpg``), perhaps in folders around all of them (``images/cats/1.jpg``). The files
    may also be in a folder of their own beside the pictures' (``captions/1.txt``).
    Links to folders are followed, but not out to a folder around this one.

    Args:
      folder: searched with all folders in it, in alphabetical order, but for hidden ones.
      encoding: of the files with captions.
      advice: what to do about pictures without any, for the log of skipped records.
      unused: which table there is of no use, and why; called with whether a ``.txt`` may be one.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        encoding: str = "utf-8",
        advice: str = "",
        unused: Callable[[bool], str] = lambda texts: "",
    ):
        self._folder = folder
        self._encoding = encoding
        self._advice = advice
        self._unused = unused
        self._classes: _Classes | None = None
        self._texts = [each for each in _TEXT_FOLDERS if (folder / each).is_dir()]

    def has_images(self) -> bool:
        """Whether there is any image at all."""
        return next(self._images(), None) is not None

    def stamp(self) -> str:
        digest = hashlib.sha256()
        for file in self._images():
            digest.update(os.fsencode(file) + b"\0")
        return digest.hexdigest()

    def fraction(self) -> float | None:
        return None

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        self._classes = self._find_classes()
        if self._classes is None and not self._advice:
            self._advice = self._unused(True)
        unused = self._unused(False) if self._classes is not None else ""
        if unused:
            _LOG.warning("the folders of the pictures are taken for classes%s", unused)
        for number, file in enumerate(self._images(), start=1):
            if number > start.item:
                yield Cursor(0, number), self._item(file)

    def _item(self, file: pathlib.Path) -> Item | BadRecord:
        key = printable(file.relative_to(self._folder).as_posix())
        split = split_of(key)
        if self._classes is not None:
            folders = _once(key.split("/"))[self._classes.above :]
            split = self._classes.splits.get(folders[0], "")
            name = folders[1 if split else 0]
            if name.lower() in _NO_CLASSES or (self._classes.in_splits and not split):
                return BadRecord(
                    "empty_caption", "neither a caption nor in a folder of a class", key
                )
            return Item(key, file, (), name, split=split)
        texts, fields = self._beside(file)
        if texts is None and fields is None:
            return BadRecord("empty_caption", f"no {file.stem}.txt beside it{self._advice}", key)
        fields = fields or {}
        if texts is None or not any(line.strip() for line in texts):
            return from_fields(fields, key=key, image=file, split=split)
        for name in find(fields, TEXT_FIELDS):
            fields.pop(name)
        return from_fields(fields, key=key, image=file, texts=texts, split=split)

    def _find_classes(self) -> _Classes | None:
        """Which folders are classes; None if none are: one alone (``images/``) says nothing."""
        places = set()
        for file in self._images():
            if self._beside(file) != (None, None):
                return None
            places.add(_once(file.relative_to(self._folder).parts[:-1]))
        same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*places, strict=False))
        above = [each[0] for each in same]
        if any(len(place) == len(above) for place in places):
            return None  # pictures beside folders
        if above and above[-1].lower() in SPLITS:
            above.pop()
        within = [place[len(above) :] for place in places]
        splits = {place[0]: place[0] for place in within if place[0].lower() in SPLITS}
        spelled = {} if splits else _spelled_splits(within)
        splits.update(spelled)
        if any(len(place) == 1 and place[0] in splits for place in within):
            return None
        names = {place[place[0] in splits] for place in within if place[0] in splits or not spelled}
        are_parts = all(map(_PART.fullmatch, names))
        is_class = len(names) > 1 and not are_parts
        return _Classes(len(above), splits, bool(spelled)) if is_class else None

    def _beside(self, file: pathlib.Path) -> tuple[list[bytes] | None, dict[str, Any] | None]:
        """Captions and named values in the files beside a picture, or in a folder of captions."""
        found = _beside(file, self._encoding)
        top, *inner = file.relative_to(self._folder).parts
        for name in self._texts if found == (None, None) and inner else ():
            if name != top:
                found = _beside(self._folder.joinpath(name, *inner), self._encoding)
                if found != (None, None):
                    break
        return found

    def _images(self) -> Iterator[pathlib.Path]:
        around = pathlib.Path(os.path.realpath(self._folder)).parents
        yield from _images(self._folder, frozenset(map(str, around)))


def _once(folders: Sequence[str]) -> tuple[str, ...]:
    """Folders without those that are in one of the same name (``flowers/flowers/``), as unpacking
    often makes them."""
    return tuple(name for name, _ in itertools.groupby(folders))


def _spelled_splits(places: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The splits that names of folders speak of (``training_set/``, ``seg_test/``), by these.

    They count if there are several, one of them for training, and all of their pictures are in
    further folders: else a bullet train and a test tube may be classes.
    """
    splits = {place[0]: split for place in places if (split := split_in_name(place[0]))}
    known = set(splits.values())
    is_deep = all(len(place) > 1 for place in places if place[0] in splits)
    return splits if is_deep and len(known) > 1 and known & {"train", "training"} else {}


def _beside(file: pathlib.Path, encoding: str) -> tuple[list[bytes] | None, dict[str, Any] | None]:
    """Captions and named values in the files beside a picture; None where there is no such file."""
    texts: list[bytes] | None = None
    for stem in (file.with_suffix(""), file):
        for suffix in _TEXT_SUFFIXES:
            data = _read(stem, suffix)
            if data is not None and not (texts and b"".join(texts).strip()):
                read = _utf8(data, encoding).splitlines()
                texts = texts if read and all(map(_BOX.fullmatch, read)) else read
    data = _read(file.with_suffix(""), ".json") or _read(file, ".json")
    try:
        fields = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, (str, list)):  # captions alone
        fields = {TEXT_FIELDS[0]: fields}
    if not isinstance(fields, dict):
        return texts, None
    return texts, {str(name): value for name, value in fields.items() if name != "key"}


def _read(stem: pathlib.Path, suffix: str) -> bytes | None:
    for ending in (suffix, suffix.upper(), f".{suffix[1:].title()}"):
        data = read_image(stem.with_name(f"{stem.name}{ending}"))
        if isinstance(data, bytes):
            return data
    return None


def _utf8(data: bytes, encoding: str) -> bytes:
    """Captions in UTF-8; unchanged what is none in the encoding it should have."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data.rstrip(b"\0") and len(data) % 2 == 0:  # UTF-16 without a mark
        # Zeros at the end alone are what programs in C leave behind a text.
        zeros = data[0::2].count(0), data[1::2].count(0)
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    if codecs.lookup(encoding).name == "utf-8":
        return data
    try:
        return data.decode(encoding).encode("utf-8")
    except UnicodeError:
        return data


def _images(folder: pathlib.Path, above: frozenset[str]) -> Iterator[pathlib.Path]:
    """Image files under a folder, following links, but not to a folder that it is in itself."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(scan(folder), key=lambda entry: entry.name)
    except OSError:
        return
    entries = [entry for entry in entries if not is_hidden(entry.name)]
    pictures = file_kinds.pictures_among((entry.name for entry in entries), IMAGE_SUFFIXES)
    for entry in entries:
        is_picture = entry.name in pictures
        # A link to nowhere is missed later. What is neither is a pipe, say, which has no end.
        if is_picture and (entry.is_file() or (entry.is_symlink() and not entry.is_dir())):
            yield folder / entry.name
    for entry in entries:
        if entry.is_dir():
            yield from _images(folder / entry.name, above | {real})
