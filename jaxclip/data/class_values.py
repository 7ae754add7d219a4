"""Classes in the shapes that other people's JSON, tables and columns have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxclip.data.caption_shapes import captioned
from jaxclip.data.naming import (
    ALSO_LABELS,
    LABEL_FIELDS,
    TEXT_FIELDS,
    find,
    first_filled,
    plain,
    said,
)


def parse_label(value: Any) -> int | str | None:
    """A class index if it is a whole number, a class name if it is another text, else None."""
    if isinstance(value, float) and value.is_integer():  # of a column with gaps, in pandas
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = " ".join(printable(str(value)).split())
    # What does not fit into 64 bits is an identifier rather than an index.
    number = re.fullmatch(r"(-1|[0-9]{1,18})(\.0)?", text)
    return int(number[1]) if number else text or None


def field_of(values: Mapping[str, Any], *, has_captions: bool, text_column: str = "") -> str | None:
    """The name under which an object or a row has its class; None if it has none.

    Args:
      values: by name.
      has_captions: there are captions elsewhere.
      text_column: the name of captions, if the user says it.
    """
    found = first_filled(values, LABEL_FIELDS)
    if found or has_captions or find(values, (*TEXT_FIELDS, text_column)):
        return found
    return None if captioned(values) else first_filled(values, ALSO_LABELS)


def of_field(name: str, value: Any) -> int | str | None:
    """The class that a field says; of ImageNet's ``PredictionString``, of classes and boxes, the
    first."""
    is_list = plain(name) == "predictionstring" and isinstance(value, str) and value.strip()
    return parse_label(value.split()[0] if is_list else value)


def of_file(data: bytes) -> int | str | None:
    """The class in a ``.cls`` file: its number or its name.

    Several numbers, or what else has no letters, is neither.
    """
    text = said(data.decode("utf-8", "replace"))
    found = parse_label(text.removeprefix("+"))
    has_letters = isinstance(found, str) and any(map(str.isalpha, found))
    return None if isinstance(found, str) and (not has_letters or "\ufffd" in found) else found


def of_sample(
    file: bytes | None, values: Mapping[str, Any], *, has_captions: bool
) -> int | str | None:
    """The class of a sample of a tar; None if it has none.

    Args:
      file: its file with a class, if it has one.
      values: the object in its JSON file.
      has_captions: whether it has captions.
    """
    found = parse_label(values.get(LABEL_FIELDS[0]))
    if found is None and file is not None:
        found = of_file(file)
    if found is None and values:
        name = field_of(values, has_captions=has_captions)
        found = of_field(name, values[name]) if name else None
    return found


def number_of(found: int | str | None, file: bytes | None, numbers: Mapping[str, int]) -> int:
    """The number of a sample's class; -1 if none is known.

    Args:
      found: what :func:`of_sample` gave; a name that has no number gives way to a number in
        ``file``.
      file: the sample's file with a class, if it has one.
      numbers: of the classes by their names.
    """
    if isinstance(found, str):
        other = None if file is None else of_file(file)
        found = numbers.get(found, other if isinstance(other, int) else -1)
    return -1 if found is None else found


def printable(text: str) -> str:
    """The text as valid Unicode: what stands for undecodable bytes is spelled out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
