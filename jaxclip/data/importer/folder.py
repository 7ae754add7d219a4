"""Reader of folders of images: captions in a file beside each, or folders that are classes."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jaxclip.data import file_kinds, tar_index
from jaxclip.data.caption_shapes import captioned
from jaxclip.data.class_values import printable
from jaxclip.data.importer import class_folders, split_lists
from jaxclip.data.importer.class_folders import ClassFolders
from jaxclip.data.importer.folders import scan, walk
from jaxclip.data.importer.items import Cursor, Item, from_fields, read_image
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import LABEL_FIELDS, SPLITS, TEXT_FIELDS, find, is_hidden, split_of
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

# Endings of files with captions; that of the picture may stand before them (1.jpg.txt).
_TEXT_SUFFIXES = (*(f".{ending}" for ending in tar_index.TEXT_EXTENSIONS), ".tags", ".cap")
# How many folders around all others are passed through on the way to lists.
_DEEPEST = 3
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
    "celeba-caption",
    "Sentences",  # of Flickr30k Entities
)
# The same of JSON files with captions, and of classes.
_VALUE_FOLDERS = ("metadata", "meta", "json", "jsons")
_LABEL_FOLDERS = ("labels", "label", "classes")
_LONGEST_LABEL = 4  # words
# What is marked in these, and how: "[/EN#1/people A man] waves".
_MARKED = re.compile(rb"\[/EN#\S+ ([^\]]*)\]")

_TINY_IMAGENETS = "val_annotations.txt"  # beside val/images, which are in no folders of classes


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
      unused_table: which table beside the pictures is of no use, and why.
      unused: the same where a ``.txt`` may be one, too.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        encoding: str = "utf-8",
        advice: str = "",
        unused_table: Callable[[], str] = lambda: "",
        unused: Callable[[], str] = lambda: "",
    ):
        self._folder = folder
        self._encoding = encoding
        self._advice = advice
        self._unused_table = unused_table
        self._unused = unused
        self._classes: ClassFolders | None = None
        self._splits: dict[str, str] = {}
        # Which folders of captions and the like are in one.
        self._beside_pictures: dict[pathlib.Path, list[str]] = {}
        self._split_depth: int | None = None

    def has_images(self) -> bool:
        """Whether there is any image at all."""
        return next(self._images(), None) is not None

    def has_captions_or_classes(self) -> bool:
        """Whether captions are beside the pictures, or their folders are classes."""
        return self._find_classes() is not None or any(
            self._beside(file) != (None, None) for file in self._images()
        )

    def stamp(self) -> str:
        digest = hashlib.sha256()
        for file in self._images():
            digest.update(os.fsencode(file) + b"\0")
        return digest.hexdigest()

    def fraction(self) -> float | None:
        return None

    def class_names(self) -> list[str]:
        self._classes = self._find_classes()
        return list(self._classes.names) if self._classes else []

    def items(self, start: Cursor) -> Iterator[tuple[Cursor, Item | BadRecord]]:
        self._classes = self._classes or self._find_classes()
        self._splits = self._listed_splits()
        self._split_depth = self._find_split_depth()
        if self._classes is None and not self._advice:
            self._advice = self._unused()
        unused = self._unused_table() if self._classes is not None else ""
        if unused:
            _LOG.warning("the folders of the pictures are taken for classes%s", unused)
        for number, file in enumerate(self._images(), start=1):
            if number > start.item:
                yield Cursor(0, number), self._item(file)

    def _item(self, file: pathlib.Path) -> Item | BadRecord:
        key = printable(file.relative_to(self._folder).as_posix())
        split = split_of(key) or self._split_within(key)
        if self._classes is not None:
            label, split = self._classes.label(key.split("/")[:-1])
            if label is None:
                detail = "neither a caption nor in a folder of a class"
                if (file.parent.parent / _TINY_IMAGENETS).is_file():
                    detail += f"; import {file.parent.parent / _TINY_IMAGENETS} by itself"
                return BadRecord("empty_caption", detail, key)
            split = split or self._splits.get(split_lists.name_of(key), "")
            return Item(key, file, (), label, split=split)
        texts, fields = self._beside(file)
        if texts is None and fields is None:
            return BadRecord("empty_caption", f"no {file.stem}.txt beside it{self._advice}", key)
        fields = fields or {}
        split = split or self._splits.get(split_lists.name_of(key), "")
        if texts is None or not any(line.strip() for line in texts):
            return from_fields(fields, key=key, image=file, split=split)
        for name in find(fields, TEXT_FIELDS):
            fields.pop(name)
        return from_fields(fields, key=key, image=file, texts=texts, split=split)

    def _find_split_depth(self) -> int | None:
        """Which folders of pictures' paths are splits: those where all are called so
        (``images/train/1.jpg``); None if there are none."""
        endings = tuple(IMAGE_SUFFIXES)
        places = [
            place.relative_to(self._folder).parts
            for place, names in walk(self._folder, _DEEPEST)
            if any(name.lower().endswith(endings) for name in names)
        ]
        depths = range(min(map(len, places), default=0))
        found = (d for d in depths if all(place[d].lower() in SPLITS for place in places))
        return next(found, None)

    def _split_within(self, key: str) -> str:
        if self._split_depth is None:
            return ""
        named = key.split("/")[:-1][self._split_depth : self._split_depth + 1]
        return named[0] if named and named[0].lower() in SPLITS else ""

    def _listed_splits(self) -> dict[str, str]:
        """What lists say of splits, in the folder or in one around those of the classes."""
        if self._classes is None:
            return split_lists.of_folder(self._folder)
        first = next(self._images(), None)
        if first is None:
            return {}
        parts = first.relative_to(self._folder).parts
        around = (self._folder.joinpath(*parts[:n]) for n in range(self._classes.above + 1))
        return next(filter(None, map(split_lists.of_folder, around)), {})

    def _find_classes(self) -> ClassFolders | None:
        """What the folders say of classes; nothing where a picture has captions."""
        places = set()
        for file in self._images():
            if self._beside(file) != (None, None):
                return None
            places.add(file.relative_to(self._folder).parts[:-1])
        return class_folders.of_places(places)

    def _beside(self, file: pathlib.Path) -> tuple[list[bytes] | None, dict[str, Any] | None]:
        """Captions and named values in the files beside a picture, or in a folder of captions."""
        texts, fields = _beside(file, self._encoding)
        for place in self._places(file, _TEXT_FOLDERS) if texts is None and fields is None else ():
            texts, fields = _beside(place, self._encoding)
            if texts is not None or fields is not None:
                break
        for place in self._places(file, _VALUE_FOLDERS) if texts is None and fields is None else ():
            found = _json_beside(place)
            fields = found if found and captioned(found) else None
        label = _label_beside(self._places(file, _LABEL_FOLDERS), self._encoding)
        if label is not None:
            fields = {LABEL_FIELDS[0]: label, **(fields or {})}
        return texts, fields

    def _places(self, file: pathlib.Path, folders: Sequence[str]) -> Iterator[pathlib.Path]:
        """Where a picture would be in folders of something else beside one that it is in:
        ``train/captions/1.jpg`` for ``train/images/1.jpg``."""
        parts = file.relative_to(self._folder).parts
        for depth in range(len(parts) - 1):
            around = self._folder.joinpath(*parts[:depth])
            if around not in self._beside_pictures:
                known = (*_TEXT_FOLDERS, *_VALUE_FOLDERS, *_LABEL_FOLDERS)
                self._beside_pictures[around] = [n for n in known if (around / n).is_dir()]
            for name in self._beside_pictures[around]:
                if name in folders and name != parts[depth]:
                    yield around.joinpath(name, *parts[depth + 1 :])

    def _images(self) -> Iterator[pathlib.Path]:
        around = pathlib.Path(os.path.realpath(self._folder)).parents
        yield from _images(self._folder, frozenset(map(str, around)))


def _beside(file: pathlib.Path, encoding: str) -> tuple[list[bytes] | None, dict[str, Any] | None]:
    """Captions and named values in the files beside a picture; None where there is no such file."""
    texts: list[bytes] | None = None
    for stem in (file.with_suffix(""), file):
        for suffix in _TEXT_SUFFIXES:
            data = _read(stem, suffix)
            if data is not None and not (texts and b"".join(texts).strip()):
                read = _MARKED.sub(rb"\1", _utf8(data, encoding)).splitlines()
                texts = texts if read and all(map(_BOX.fullmatch, read)) else read
    fields = _json_beside(file)
    label = _read(file.with_suffix(""), ".cls")
    if label is not None and label.strip():
        text = _utf8(label, encoding).decode("utf-8", "replace")
        fields = {LABEL_FIELDS[0]: text.strip(), **(fields or {})}
    return texts, fields


def _json_beside(file: pathlib.Path) -> dict[str, Any] | None:
    """Named values in the JSON file beside a picture; None where there is no such file."""
    data = _read(file.with_suffix(""), ".json") or _read(file, ".json")
    try:
        fields = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, (str, list)):  # captions alone
        fields = {TEXT_FIELDS[0]: fields}
    if not isinstance(fields, dict):
        return None
    return {str(name): value for name, value in fields.items() if name != "key"}


def _label_beside(places: Iterable[pathlib.Path], encoding: str) -> str | None:
    """The class in a file of a picture's name in a folder of classes; None if there is none.

    It is a number or a few words in one line: other files there are of boxes.
    """
    for place in places:
        data = _read(place.with_suffix(""), ".txt")
        text = "" if data is None else _utf8(data, encoding).decode("utf-8", "replace").strip()
        words = text.split()
        numbers = sum(word.replace(".", "").isdecimal() for word in words)
        if words and len(words) <= _LONGEST_LABEL and numbers <= 1 and "\n" not in text:
            return text
    return None


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
