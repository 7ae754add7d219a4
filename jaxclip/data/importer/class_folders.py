"""Which folders of pictures are classes (``cats/1.jpg``), and what the class of a picture is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from jaxclip.data.naming import SPLITS, split_in_name, split_of

# Folders that are no classes, beside others that are (Tiny ImageNet's val/images) or alone.
_NO_CLASSES = frozenset((
    "images", "image", "imgs", "img", "jpg", "jpegimages", "masks", "mask", "annotations",
    "annotation", "labels", "trimaps", "segmentationclass", "segmentationobject", "gtfine",
    "leftimg8bit",
))  # fmt: skip
# Of these the ones that may be a class beside one without (mask/, no_mask/).
_WORN = frozenset(("mask", "masks"))
_SPLIT = r"(train|training|val|valid|validation|dev|test|testing)"
# Folders that are parts of a data set rather than classes where all are called so: train2017,
# test_images, cars_train, Final_Test, images_001, HAM10000_images_part_1, VG_100K_2, patient00001.
_PART = re.compile(
    rf"{_SPLIT}([\W\d_]|images?|imgs?|set)*"
    rf"|\w+[_-]{_SPLIT}"
    r"|(\w*[\W_])?(images?|imgs?|photos?|pictures?|part|batch|chunk|shard|patient)[\W_]*\d+"
    r"|VG_100K(_2)?",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[a-z]")


class ClassFolders(NamedTuple):
    """How the folders of a picture name its class.

    Attributes:
      above: how many folders stand above those of classes and splits (``images/cats/1.jpg``: 1).
      are_numbers: the folders are called by the numbers of the classes (ImageNetV2, GTSRB).
      are_paths: classes are sorted into folders of one letter, and may have folders within
        (``a/apartment_building/outdoor/1.jpg``, SUN397).
      splits: the splits by folders whose names only speak of them (``training_set/``); where there
        are any, other folders beside them hold no classes.
      names: of all classes in the order of letters, as torchvision numbers them; none if they are
        numbers.
      no_classes: names of folders, in small letters, that are no classes.
      things: names of folders that are classes, though they are called like splits.
    """

    above: int
    are_numbers: bool
    are_paths: bool
    names: tuple[str, ...] = ()
    splits: Mapping[str, str] = MappingProxyType({})
    no_classes: frozenset[str] = _NO_CLASSES
    things: frozenset[str] = frozenset()

    def label(self, folders: Sequence[str]) -> tuple[int | str | None, str]:
        """The class and the split of a picture by the folders that it is in, outermost first.

        Returns:
          A number or a name, None where the folder is no class; the split, empty for none.
        """
        folders = _once(folders)[self.above :]
        split = split_of("/".join((*folders, ""))) or self.splits.get(folders[0], "")
        split = "" if folders[0] in self.things else split
        within = folders[bool(split) :]
        if not within or (self.splits and not split) or within[0].lower() in self.no_classes:
            return None, split
        if self.are_numbers:
            return int(within[0]), split
        return "/" + "/".join(within) if self.are_paths else within[0], split


def of_places(places: Collection[tuple[str, ...]]) -> ClassFolders | None:
    """What the folders of a data set's pictures say of classes.

    Args:
      places: for each picture the folders that it is in, outermost first.

    Returns:
      None if they are no classes: one alone (``images/``) says nothing.
    """
    places = {_once(place) for place in places}
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*places, strict=False))
    above = [each[0] for each in same]
    if any(len(place) == len(above) for place in places):
        return None  # pictures beside folders
    if above and above[-1].lower() in SPLITS:
        above.pop()
    names, are_deeper = set(), True
    inner = [place[len(above) :] for place in places]
    splits, no_classes, things = _spelled_splits(inner), _no_classes(inner), _things(inner)
    for within in inner:
        in_split = within[0] not in things and (within[0].lower() in SPLITS or within[0] in splits)
        if len(within) <= in_split:
            return None
        if splits and not in_split:
            continue
        name = within[in_split]
        if name.lower() not in no_classes:
            names.add(name)
            are_deeper = are_deeper and len(within) > in_split + 1
    if len(names) < 2 or all(map(_PART.fullmatch, names)):
        return None
    are_numbers = all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names)
    are_paths = are_deeper and all(map(_LETTER.fullmatch, names))
    found = ClassFolders(
        len(above), are_numbers, are_paths, splits=splits, no_classes=no_classes, things=things
    )
    labels = {found.label(place)[0] for place in places}
    return found._replace(names=tuple(sorted(each for each in labels if isinstance(each, str))))


def _things(places: Collection[tuple[str, ...]]) -> frozenset[str]:
    """Folders ``train`` that show trains: pictures are right in them, as in several others beside
    them (``bus/``, ``car/``), none of which is called like a split."""
    names = {place[0] for place in places}
    trains = {name for name in names if name.lower() == "train"}
    others = {name for name in names - trains if name.lower() not in _NO_CLASSES}
    are_alike = all(len(place) == 1 for place in places) and len(others) > 1
    return frozenset(trains if are_alike and not any(map(split_in_name, others)) else ())


def _once(folders: Sequence[str]) -> tuple[str, ...]:
    """Folders without those that are in one of the same name (``flowers/flowers/``), as unpacking
    often makes them.

    The last one in a split of its name is kept: ``train/train/1.jpg`` may show a train.
    """
    once = tuple(name for name, _ in itertools.groupby(folders))
    is_in_split = len(folders) > 1 and folders[-1] == folders[-2] and folders[-1].lower() in SPLITS
    return (*once, folders[-1]) if is_in_split else once


def _no_classes(places: Sequence[tuple[str, ...]]) -> frozenset[str]:
    """Names of folders that are no classes: masks are one where others are called to have none, and
    there are no pictures that they could be drawn over."""
    names = {name.lower() for place in places for name in place}
    are_worn = names.isdisjoint(_NO_CLASSES - _WORN) and any(
        "mask" in name for name in names - _WORN
    )
    return _NO_CLASSES - _WORN if are_worn else _NO_CLASSES


def _spelled_splits(places: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The splits that names of folders speak of (``training_set/``, ``seg_test/``), by these.

    They count if there are several, one of them for training, and all of their pictures are in
    further folders: else a bullet train and a test tube may be classes.
    """
    splits = {place[0]: split for place in places if (split := split_in_name(place[0]))}
    known = set(splits.values())
    is_exact = any(place[0].lower() in SPLITS for place in places)
    is_deep = not is_exact and all(len(place) > 1 for place in places if place[0] in splits)
    return splits if is_deep and len(known) > 1 and known & {"train", "training"} else {}
