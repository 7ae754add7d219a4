"""Under which names other people's tables, JSON files and tars keep the parts of a record.

Names are compared without regard to letter case. Where several occur, the first one here that has
a value counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FILE_FIELDS = (
    "file", "filepath", "file_path", "file_name", "filename", "image", "image_path", "img",
    "img_path", "path",
)  # fmt: skip
TEXT_FIELDS = (
    "texts", "captions", "text", "caption", "txt", "title", "prompt", "alt_text", "alt",
    "description", "sentences", "sentence",
)  # fmt: skip
KEY_FIELDS = ("key", "id")
LABEL_FIELDS = ("label", "class", "cls")

# Members of a record's meta that fields of a batch ask for: a tag (or a list of them) for each
# caption, captions that are wrong, boxes, and a text for each box.
CAPTION_TAGS, HARD_NEGATIVES, BOXES = "caption_tags", "hard_negatives", "boxes"
REGION_TEXTS = "region_texts"


def is_filled(value: Any) -> bool:
    """Whether a value says anything: no None, blank text, or list of nothing but those."""
    if isinstance(value, str | bytes):
        return bool(value.strip())
    if isinstance(value, Sequence):
        return any(is_filled(each) for each in value)
    return value is not None


def find(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of ``names`` that are ``known``, in the order of ``known``."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        if isinstance(name, str):
            spelled.setdefault(name.strip().lower(), []).append(name)
    return [name for each in known for name in spelled.get(each, ())]


def first_filled(values: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """The first known name that has a value; else the first that occurs at all; else None."""
    found = find(values, known)
    return next((name for name in found if is_filled(values[name])), found[0] if found else None)
