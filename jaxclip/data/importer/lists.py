"""Lists of pictures with a caption or class behind each name, as data sets of old have them."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from jaxclip.data.importer.pictures import ENDINGS, IMAGE_SUFFIXES, Pictures

SUFFIXES = (".token", ".txt")


class Form(NamedTuple):
    """How each line of a list is made.

    Attributes:
      pattern: of a line: the name of a file, and what is said of it.
      expected: the same in words.
      field: what is said: "caption", which may be the number of a class in its place, or "label".
    """

    pattern: re.Pattern[str]
    expected: str
    field: str = "caption"

    def read(self, line: str) -> tuple[str, dict[str, Any]] | None:
        """The file that a line names and what it says of it; None if it is not made so."""
        match = self.pattern.fullmatch(line)
        if match is None:
            return None
        said = match["said"]
        is_label = self is not _NUMBERED and said.isdecimal()
        return match["file"], {"label" if is_label else self.field: said}


# Flickr's results.token; COCO-CN's have a language, and no endings.
_NUMBERED = Form(
    re.compile(r"(?P<file>.+?\.\w{3,4}|\S+?)#(?:\w+#)?\d+[\t ]+(?P<said>.*)"),
    "NAME#0<tab>CAPTION",
)
# ImageNet's val.txt, with numbers of classes; Places365's; some write "a.jpg: a cat".
_LISTED = Form(
    re.compile(
        rf"(?P<file>\S+(?:{ENDINGS}))(?: *[:=]| +[-\u2013\u2014])? +(?P<said>.*)", re.IGNORECASE
    ),
    "NAME CAPTION",
)
# Oxford-IIIT Pets: the number of the class, cat or dog, the number of the breed among these. The
# class is called by what stands before the number of the picture.
_PETS = Form(
    re.compile(r"(?P<file>(?P<said>\S+)_\d+) \d+ [12] \d+"), "NAME CLASS SPECIES BREED", "label"
)  # fmt: skip
# FGVC-Aircraft: names without endings, and a class.
_AIRCRAFT = Form(re.compile(r"(?P<file>\d+) (?P<said>\S.*)"), "NAME CLASS", "label")
_AIRCRAFT_NAME = re.compile(r"images_(variant|family|manufacturer)_[a-z]+\.txt")
# Others of names without endings, which must be there; numbers in a row are boxes.
BARE = Form(re.compile(r"(?P<file>\S+) +(?P<said>\S.*)"), "NAME CAPTION")
_NUMBERS = re.compile(r"-?[\d.]+( +-?[\d.]+)+|-\d+")


def is_comment(line: str) -> bool:
    """Whether a line that names no picture need not do so."""
    return line.startswith("#")


def form_of(table: pathlib.Path, lines: Iterable[str]) -> Form | None:
    """How the lines of a list are made, by its first one.

    Args:
      table: its name.
      lines: of its text.

    Returns:
      None if it is no list.
    """
    for line in lines:
        line = line.rstrip("\r\n")
        form = next((each for each in (_NUMBERED, _LISTED, _PETS) if each.read(line)), None)
        if form is None and is_comment(line):
            continue
        if form is None and _AIRCRAFT_NAME.fullmatch(table.name) and _AIRCRAFT.read(line):
            return _AIRCRAFT
        return form or (BARE if _names_picture(table, line) else None)
    return None


def _names_picture(table: pathlib.Path, line: str) -> bool:
    match = BARE.pattern.fullmatch(line)
    if match is None or "\t" in line or _NUMBERS.fullmatch(match["said"]):
        return False
    is_index = match["file"].isdecimal() and match["said"].isdecimal()
    if is_index or match["said"].lower().endswith(tuple(IMAGE_SUFFIXES)):
        return False  # CUB's train_test_split.txt and images.txt
    return Pictures(table, [match["file"]]).has_some
