"""Which folders of pictures are classes (``cats/1.jpg``), and what the class of a picture is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from jaxclip.data.naming import SPLITS, split_of

# Folders that are no classes, beside others that are (Tiny ImageNet's val/images) or alone.
_NO_CLASSES = frozenset((
    "images", "image", "imgs", "img", "jpg", "jpegimages", "masks", "mask", "annotations",
    "annotation", "labels", "trimaps", "segmentationclass", "segmentationobject", "gtfine",
    "leftimg8bit",
))  # fmt: skip
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
      names: of all classes in the order of letters, as torchvision numbers them; none if they are
        numbers.
    """

    above: int
    are_numbers: bool
    are_paths: bool
    names: tuple[str, ...] = ()

    def label(self, folders: Sequence[str]) -> tuple[int | str | None, str]:
        """The class and the split of a picture by the folders that it is in, outermost first.

        Returns:
          A number or a name, None where the folder is no class; the split, empty for none.
        """
        split = split_of("/".join((*folders[self.above :], "")))
        within = folders[self.above + bool(split) :]
        if not within or within[0].lower() in _NO_CLASSES:
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
    same = itertools.takewhile(lambda each: len(set(each)) == 1, zip(*places, strict=False))
    above = [each[0] for each in same]
    if any(len(place) == len(above) for place in places):
        return None  # pictures beside folders
    if above and above[-1].lower() in SPLITS:
        above.pop()
    names, are_deeper = set(), True
    for place in places:
        within = place[len(above) :]
        in_split = within[0].lower() in SPLITS
        if len(within) <= in_split:
            return None
        name = within[in_split]
        if name.lower() not in _NO_CLASSES:
            names.add(name)
            are_deeper = are_deeper and len(within) > in_split + 1
    if len(names) < 2 or all(map(_PART.fullmatch, names)):
        return None
    are_numbers = all(name.isascii() and name.isdecimal() and len(name) < 10 for name in names)
    are_paths = are_deeper and all(map(_LETTER.fullmatch, names))
    found = ClassFolders(len(above), are_numbers, are_paths)
    labels = {found.label(place)[0] for place in places}
    return found._replace(names=tuple(sorted(each for each in labels if isinstance(each, str))))
