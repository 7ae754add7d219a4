"""Which columns of a table of Arrow have pictures, captions and labels."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxclip.data.caption_shapes import CONVERSATIONS
from jaxclip.data.importer.arrow_types import is_list, is_number, may_be_text, plain_type
from jaxclip.data.naming import (
    ALSO_LABELS,
    KEY_FIELDS,
    LABEL_FIELDS,
    LINK_FIELDS,
    TEXT_FIELDS,
    find,
    find_files,
    given_by_folders,
    is_among,
    say_which_class,
    say_which_picture,
    unique_names,
)
from jaxclip.registry import hint

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "images", "img")
# Of what the hub makes of tars, the JSON files are a column.
JSON = "json"
_TEXT_COLUMNS = (*TEXT_FIELDS, *CONVERSATIONS, JSON)
# How to say which column it is, for errors of imports.
OPTION = "say which it is with --{}-column"
# The number of a caption, or what pandas puts behind the second name of two that are the same.
_NUMBER = re.compile(r"[\s_.]*\d{1,2}$")


class Columns(NamedTuple):
    """Names of the columns with images, captions and labels (empty = none), and what else is known.

    Attributes:
      image: with pictures, or names of their files.
      text: with captions.
      label: with classes; it may be one of ``given``.
      class_names: of the labels, if they are noted.
      more: further columns with captions (``caption_1``, …).
      given: values of all rows by the folders that the file is in (``split=train/``); keys are of
        one row each, and are left out.
    """

    image: str
    text: str
    label: str
    class_names: list[str]
    more: tuple[str, ...] = ()
    given: Mapping[str, str] = {}


def columns_of(
    file: pathlib.Path, schema: Any, option: str, wanted: tuple[str, str] = ("", "")
) -> Columns:
    """The columns of a table by their usual names.

    Args:
      file: where the table is, for errors.
      schema: of Arrow.
      option: how to name a column, for errors; ``{}`` stands for ``image`` or ``text``.
      wanted: names of the columns with images and captions; empty to find them.

    Raises:
      ValueError: there is no column with images, or neither captions nor labels.
    """
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        raise ValueError(f"{file} has several columns {twice[0]!r}; give them different names")
    types = {name: plain_type(schema.field(name).type) for name in schema.names}
    for name, which in zip(wanted, ("image", "text"), strict=True):
        if name and name not in types:
            raise ValueError(
                f"{file} has no column {name!r} ({_flag(option, which)}){hint(name, types)}"
            )
    given = {n: v for n, v in given_by_folders(file).items() if not is_among(n, KEY_FIELDS)}
    image = wanted[0] or _image_in(types, option)
    text, more = _captions_in(types, image, wanted[1])
    noted = _noted(schema.metadata or {})
    if text in noted and is_number(types[text]):  # a class that the user names
        text, labels = "", [text]
    else:
        known = [name for name in find(types, LABEL_FIELDS) if not is_list(types[name])]
        labels = known or [name for name in types if name in noted and not text]
        say_which_class(labels, option.format("text"))
        labels = labels or find(given, LABEL_FIELDS)
        labels = labels or (find((*types, *given), ALSO_LABELS) if not text else [])
    label = next(iter(labels), "")
    if not text and not label:
        numbers = (n for n in find(types, _TEXT_COLUMNS) if n != image and is_number(types[n]))
        text = next(numbers, "")
    if text and not (may_be_text(types[text]) or is_number(types[text])):
        raise ValueError(f"{file}: column {text!r} holds {types[text]}, which is no text")
    if not image or not (text or label):
        raise ValueError(f"{file} has no column with {_lacking(types, bool(image), option)}")
    return Columns(image, text, label, noted.get(label, []), more, given)


def _flag(option: str, which: str) -> str:
    return f"--{which}-column" if "--" in option else f"?{which}="


def _image_in(types: Mapping[str, Any], option: str) -> str:
    """The column with pictures; empty if there is none."""
    import pyarrow

    def has_bytes(kind: Any) -> bool:
        if is_list(kind):
            kind = kind.value_type
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    def is_text(kind: Any) -> bool:
        if is_list(kind):
            kind = kind.value_type
        return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)

    images = [name for name in find(types, IMAGE_COLUMNS) if has_bytes(types[name])]
    images += [name for name, kind in types.items() if name not in images and has_bytes(kind)]
    say_which_picture(images, option.format("image"))
    # Text that may be base64 or the name of a file.
    named = (*find(types, IMAGE_COLUMNS), *find_files(types))
    return next(iter([*images, *(name for name in named if is_text(types[name]))]), "")


def _captions_in(types: Mapping[str, Any], image: str, wanted: str) -> tuple[str, tuple[str, ...]]:
    """The column with captions, empty if there is none, and those of the same name with numbers."""
    if wanted:
        return wanted, ()
    usable = [name for name, kind in types.items() if name != image and may_be_text(kind)]
    text = next(iter(find(usable, _TEXT_COLUMNS)), "")
    numbered = {name: _NUMBER.sub("", name) for name in usable if _NUMBER.search(name)}
    base = text or next((b for b in numbered.values() if is_among(b, TEXT_FIELDS)), "")
    same = [name for name, each in numbered.items() if base and each == base and name != text]
    return (text, tuple(same)) if text else (next(iter(same), ""), tuple(same[1:]))


def _lacking(types: Mapping[str, Any], has_image: bool, option: str) -> str:
    """What there is no column with, which there are, and the way out."""
    listing = ", ".join(f"{name}: {kind}" for name, kind in types.items())
    names: Sequence[str]
    what, names, which = (
        ("captions", TEXT_FIELDS, "text") if has_image else ("images", IMAGE_COLUMNS, "image")
    )
    links = find(types, LINK_FIELDS) if not has_image else ()
    numbers = find(types, IMAGE_COLUMNS) if not has_image else ()
    way = (
        f"{numbers[0]!r} holds numbers; store pictures as the bytes of a PNG or JPEG"
        if numbers and not links
        else f"{links[0]!r} are links: download the pictures first, with img2dataset for one"
        if links
        else f"{option.format(which)}, or name it {' or '.join(names[:12])}"
    )
    return f"{what} (it has {listing}); {way}"


def _noted(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Names of the classes by column, as Hugging Face ``datasets`` notes them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: feature.get("names") for name, feature in features.items()
                 if isinstance(feature, dict)}  # fmt: skip
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {n: unique_names([str(each) for each in names]) for n, names in found.items()
            if isinstance(names, list)}  # fmt: skip
