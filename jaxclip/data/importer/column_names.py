"""Which columns of a table whose cells are separated have files, captions and labels."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Protocol

from jaxclip.data.importer.inline import is_inline
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES, Pictures
from jaxclip.data.naming import (
    ALSO_LABELS,
    FILE_FIELDS,
    ID_FIELDS,
    LABEL_FIELDS,
    LINK_FIELDS,
    TEXT_FIELDS,
    find,
    find_files,
    is_among,
)
from jaxclip.registry import hint

_LINKS = ("http://", "https://")
_NAMED = 12  # of the usual names of a column, in an error
_BOX_NUMBERS = 4
_BOX = re.compile(r"-?[\d.]+( -?[\d.]+){3}")
_WORD = re.compile(r"[^\W\d]{2}")
# The number of a caption, or what pandas puts behind the second name of two that are the same.
_NUMBER = re.compile(r"[\s_.]*\d{1,2}$")
# The number of a caption behind a picture's name, as Flickr8k has it.
_CAPTION_NUMBER = re.compile(r"#(\w+#)?\d+$")


class Wanted(Protocol):
    """Names of the columns with files and with captions; empty to find them by usual names."""

    @property
    def image(self) -> str: ...
    @property
    def text(self) -> str: ...


def lacks(names: Sequence[str], wanted: Wanted) -> str:
    """What a line of columns' names lacks; empty if nothing."""
    for what, option, own, known in (
        ("the image file", "image", wanted.image, (*FILE_FIELDS, *ID_FIELDS)),
        ("the caption", "text", wanted.text, (*TEXT_FIELDS, *LABEL_FIELDS, *ALSO_LABELS)),
    ):
        if own and own.lower() not in names:
            return f"no column {own!r} (--{option}-column){hint(own.lower(), names)}"
        if own or (files_in(names) if option == "image" else find(names, known)):
            continue
        links = find(names, LINK_FIELDS) or [n for n in names if n.startswith(("http:", "https:"))]
        if option == "image" and links:
            return (
                f"links ({links[0]!r}) in place of files; download the pictures, say with "
                "img2dataset, and import what that leaves"
            )
        return (
            f"no column with {what}; say which it is with --{option}-column, or name it "
            f"one of {', '.join(known[:_NAMED])}, …"
        )
    return ""


def joined(names: list[str], wanted: Wanted) -> list[str]:
    """Names of columns, with numbered ones of captions (``caption_0``, ``caption.1``) of one name,
    be it that of the captions without a number; where others are captions they stay as they are."""
    if wanted.text:
        return names
    first = (find(names, TEXT_FIELDS) or [""])[0]
    bases = [_NUMBER.sub("", name) for name in names]
    return [
        base if (base == first if first else is_among(base, TEXT_FIELDS)) else name
        for base, name in zip(bases, names, strict=True)
    ]


def files_in(names: Sequence[str]) -> list[str]:
    """Columns that name picture files; where there are no links, one of ids will do."""
    return find_files(names, () if find(names, LINK_FIELDS) else ID_FIELDS)


def of_files(names: Sequence[str], cells: Sequence[str]) -> str:
    """The column of files, by the first row: not one of links where another names pictures."""
    known = files_in(names)
    first = dict(zip(names, cells, strict=False))
    if first.get(known[0], "").strip().startswith(_LINKS):
        return next((name for name in known if is_picture(first.get(name, ""))), known[0])
    return known[0]


def has_row_names(names: Sequence[str], image: str, cells: Sequence[str]) -> bool:
    """Whether rows begin with a number that no column is named for, as R writes them."""
    place = names.index(image)
    return (
        len(cells) == len(names) + 1
        and cells[0].strip().isdecimal()
        and is_picture(cells[place + 1])
        and not is_picture(cells[place])
    )


def is_picture(cell: str) -> bool:
    """Whether a cell names a picture file, or is a picture."""
    name = _CAPTION_NUMBER.sub("", cell.strip())
    if is_inline(name):
        return True
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(_LINKS)


def nameless(cells: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a table that has none; empty if it can't be told what is what."""
    pictures = [is_picture(cell) for cell in cells]
    if len(cells) > 2 and sum(map(is_inline, cells)) == 1:
        return _around_picture(cells)
    if len(cells) == 6 and pictures[0] and _BOX.fullmatch(" ".join(cells[2:])):
        # A class and its box, as Tiny ImageNet's val_annotations.txt.
        return ("file", "label", *(f"box_{name}" for name in ("x0", "y0", "x1", "y1")))
    if len(cells) > 2 and sum(pictures) == 1:
        others = [cell for cell, is_file in zip(cells, pictures, strict=True) if not is_file]
        if all(" " in cell.strip() and _WORD.search(cell) for cell in others):
            return tuple("file" if is_file else "caption" for is_file in pictures)
        return _with_one_text(cells, pictures)
    if len(cells) != 2 or sum(pictures) != 1:
        return ()
    other = cells[pictures.index(False)].strip()
    if other.isdecimal() and any(map(is_inline, cells)):
        return ()  # more likely the picture's number, as Chinese-CLIP has it, than its class
    return tuple(
        "file" if is_file else "label" if other.isdecimal() else "caption" for is_file in pictures
    )


def is_prose(cells: Sequence[str]) -> bool:
    """Whether cells, blanks and all, are a picture's name and a text with commas in it."""
    return (
        len(cells) > 2
        and is_picture(cells[0])
        and all(cell.startswith(" ") for cell in cells[2:])
        and all(map(_WORD.search, cells[1:]))
    )


def _with_one_text(cells: Sequence[str], pictures: Sequence[bool]) -> tuple[str, ...]:
    """Names of the columns of a table with one text beside names of pictures and numbers; four
    numbers are a box, and the text what is in it."""
    others = [cell for cell, is_file in zip(cells, pictures, strict=True) if not is_file]
    texts = [cell for cell in others if _WORD.search(cell)]
    if len(texts) != 1 or len(others) > _BOX_NUMBERS:
        return ()
    return tuple(
        "file" if is_file else "caption" if cell == texts[0] else f"column {i}"
        for i, (cell, is_file) in enumerate(zip(cells, pictures, strict=True))
    )


def by_files(table: pathlib.Path, cells: Sequence[str]) -> tuple[str, ...]:
    """As :func:`nameless`, where names of pictures have no endings; there must be such a file."""
    first = cells[0].strip() if len(cells) == 2 else ""
    if not first or " " in first or not Pictures(table, [first]).has_some:
        return ()
    return ("file", "label" if cells[1].strip().isdecimal() else "caption")


def _around_picture(cells: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a table of pictures in base64, as OFA's ``vision_language.tsv``."""
    words = [i for i, cell in enumerate(cells) if not is_inline(cell) and _WORD.search(cell)]
    if not words:
        return ()
    names = ["file" if is_inline(cell) else f"column {i}" for i, cell in enumerate(cells)]
    # Pictures may have letters in their ids, which no blanks stand between.
    spaced = [i for i in words if " " in cells[i].strip()]
    names[(spaced or words)[0]] = "caption"
    return tuple(names)
