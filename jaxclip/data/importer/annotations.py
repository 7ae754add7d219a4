"""JSON documents that say which captions belong to which picture files.

Known are the layouts of COCO (``images`` and ``annotations``), of Karpathy's splits
(``dataset_coco.json``: ``images`` with ``sentences``), of LLaVA (``conversations``) and of chats
(``messages``), a list of objects or of pairs, an object of columns, and one of captions by file
name.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import FILE_FIELDS, TEXT_FIELDS, find, first_filled

EXPECTED = (
    "names no picture files: expected is a list of objects such as "
    '{"image": "1.jpg", "caption": "…"}, captions by file name, or the layout of COCO'
)

# A file's name and everything else that is said about it.
Found = tuple[str, dict[str, Any]]

# Fields that hold the turns of a conversation.
CONVERSATIONS = ("conversations", "messages", "conversation")

# Karpathy's fourth split belongs to the training set.
_SPLITS = {"restval": "train"}


def rows(document: Any, image: str = "") -> list[Found | None] | None:
    """Rows of a document; None in the place of an entry that names no file.

    Args:
      document: what ``json.loads`` made of it.
      image: the name under which files are named; empty to find it.

    Returns:
      None if the document is of no known layout.
    """
    if isinstance(document, Mapping):
        images, notes = document.get("images"), document.get("annotations")
        if _are_objects(images) and _are_objects(notes):
            return list(_coco(images, notes))
        if _are_objects(images):
            return [row(each, image) for each in images]
        columns = _columns(document, image)
        if columns is not None:
            return [row(each, image) for each in columns]
        lists = [each for each in document.values() if _are_objects(each)]
        if len(lists) == 1:
            return rows(lists[0], image)
        if document and all(_is_caption(each) for each in document.values()):
            return [(str(name), {"caption": text}) for name, text in document.items()]
        if document and all(isinstance(each, Mapping) for each in document.values()):
            # By file name, or by a number with the file inside.
            return [row(each, image) or (str(name), dict(each)) for name, each in document.items()]
        return None
    if _are_pairs(document):
        return [(name, {"caption": text}) for name, text in document]
    if not _are_objects(document):
        return None
    found = [row(each, image) for each in document]
    return found if any(found) else None


def row(entry: Any, image: str = "") -> Found | None:
    """One object as a row; None if it names no file."""
    if not isinstance(entry, Mapping):
        return None
    values = {str(name): value for name, value in entry.items()}
    column = image if image in values else first_filled(values, FILE_FIELDS)
    name = values.pop(column, None) if column else None
    if isinstance(name, list) and len(name) == 1:
        name = name[0]
    if not isinstance(name, str) or not name.strip():
        return None
    name = name.strip()
    if column == "filepath" and isinstance(values.get("filename"), str):
        name = f"{name}/{values.pop('filename')}"  # Karpathy's: a folder and a name in it
    turns = first_filled(values, CONVERSATIONS)
    if turns and not find(values, TEXT_FIELDS) and isinstance(values[turns], list):
        values["caption"] = answer(values.pop(turns))
    for field in find(values, TEXT_FIELDS):
        if _are_objects(values[field]):
            values[field] = captions_of(values[field])
    split = values.get("split")
    if isinstance(split, str):
        values["split"] = _SPLITS.get(split, split)
    return name, values


def _coco(images: Iterable[Any], notes: Iterable[Any]) -> Iterable[Found | None]:
    captions: dict[str, list[Any]] = {}
    for note in notes:
        captions.setdefault(str(note.get("image_id")), []).append(note.get("caption"))
    for each in images:
        found = row({name: each[name] for name in ("file_name", "id") if name in each})
        if found is None:
            yield None
            continue
        name, values = found
        yield name, {**values, "captions": captions.get(str(each.get("id")), [])}


def _columns(document: Mapping[str, Any], image: str) -> list[dict[str, Any]] | None:
    """The rows of a document of columns, as lists or, by pandas, as objects by row."""
    files = document.get(image or (find(document, FILE_FIELDS) or [""])[0])
    if isinstance(files, list):
        count = range(len(files))
        lists = {n: v for n, v in document.items() if isinstance(v, list) and len(v) == len(files)}
        return [{name: column[i] for name, column in lists.items()} for i in count]
    if isinstance(files, Mapping):
        objects = {n: v for n, v in document.items() if isinstance(v, Mapping)}
        return [{name: column.get(i) for name, column in objects.items()} for i in files]
    return None


def captions_of(value: Any) -> Any:
    """Captions in lists of objects (``[{"raw": "a cat"}]``) or a conversation; else the value."""
    if isinstance(value, Mapping):
        name = first_filled(value, (*TEXT_FIELDS, "raw"))
        return captions_of(value[name]) if name else value
    if isinstance(value, list):
        said = answer(value)
        return said if said is not None else [captions_of(each) for each in value]
    return value


def answer(turns: Sequence[Any]) -> Any:
    """What the assistant first says in a conversation."""
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        if turn.get("from", turn.get("role")) in ("gpt", "assistant", "model"):
            said = turn.get("value", turn.get("content"))
            if isinstance(said, list):  # of parts, some of which are pictures
                parts = [part.get("text") for part in said if isinstance(part, Mapping)]
                said = " ".join(part for part in parts if isinstance(part, str))
            return said
        if "assistant" in turn:  # {"user": …, "assistant": …}
            return turn["assistant"]
    return None


def _are_pairs(value: Any) -> TypeGuard[list[tuple[str, Any]]]:
    """Whether it is a list of a name and captions each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, list)
            and len(each) == 2
            and isinstance(each[0], str)
            and pathlib.PurePath(each[0]).suffix.lower() in IMAGE_SUFFIXES
            and _is_caption(each[1])
            for each in value
        )
    )


def _are_objects(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _is_caption(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) for each in value)
    return isinstance(value, str)
