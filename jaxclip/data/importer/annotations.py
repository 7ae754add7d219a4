"""JSON documents that say which captions belong to which picture files.

Known are the layouts of COCO (``images`` and ``annotations``), of Karpathy's splits
(``dataset_coco.json``: ``images`` with ``sentences``), of LLaVA (``conversations``) and of chats
(``messages``), a list of objects or of pairs, CoOp's splits, an object of columns, and one of
captions by file name.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from jaxclip.data.caption_shapes import CONVERSATIONS, answer, said_in
from jaxclip.data.importer import json_sets
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.naming import (
    FILE_FIELDS,
    ID_FIELDS,
    LINK_FIELDS,
    TEXT_FIELDS,
    find,
    find_files,
    first_filled,
    is_filled,
    split_named,
)

_LOG = logging.getLogger(__name__)

EXPECTED = (
    "names no picture files: expected is a list of objects such as "
    '{"image": "1.jpg", "caption": "…"}, captions by file name, or the layout of COCO'
)

# Members of an object that stands for a picture.
_PICTURE_MEMBERS = ("bytes", "base64", "data", "path", "file_name", "filename", "url")

# A file's name and everything else that is said about it.
Found = tuple[str, dict[str, Any]]


def rows(document: Any, image: str = "") -> list[Found | str] | None:
    """Rows of a document; in the place of an entry that names no file, what it lacks.

    Args:
      document: what ``json.loads`` made of it.
      image: the name under which files are named; empty to find it.

    Returns:
      None if the document is of no known layout.
    """
    if isinstance(document, Mapping):
        return _of_object(document, image)
    if _are_pairs(document):
        are_numbers = all(type(said) is int for _, said in document)  # of classes, as StyleGAN's
        return [(name, {"label" if are_numbers else "caption": said}) for name, said in document]
    if _are_classed(document):
        return [(name, {"label": class_name}) for name, _, class_name in document]
    if not _are_objects(document):
        return None
    if all(len(each) == 1 and all(map(_names_picture, each)) for each in document):
        return [found for each in document for found in rows(each, image) or ()]
    found = _each(document, image)
    return None if all(isinstance(each, str) for each in found) else found


def _of_object(document: Mapping[str, Any], image: str) -> list[Found | str] | None:
    images, notes = document.get("images"), document.get("annotations")
    if _are_objects(images) and _are_objects(notes):
        return list(_coco(images, notes, document.get("categories")))
    if _are_objects(images):
        return _each(images, image)
    columns = _columns(document, image)
    if columns is not None:
        return _each(columns, image)
    if _names_picture(document.get(_file_column(document))):
        return _each([document], image)  # a single row
    parts = {name: each for name, each in document.items() if isinstance(each, list | Mapping)}
    if parts and all(map(split_named, parts)):
        return _by_split(parts, image)
    kinds = (_are_objects, _are_pairs, _are_classed)
    lists = {name: each for name, each in parts.items() if any(kind(each) for kind in kinds)}
    known = [found for each in lists.values() if (found := rows(each, image)) is not None]
    if len(known) == 1:
        return known[0]
    if known and len(known) == len(document):
        return [
            _in_class(each, name) for name, one in zip(lists, known, strict=True) for each in one
        ]
    named = all(map(_names_picture, document))
    if document and all(_is_caption(each, in_doubt=named) for each in document.values()):
        return [(str(name), {"caption": text}) for name, text in document.items()]
    within = [each for each in parts.values() if isinstance(each, Mapping) and each]
    if not named and len(within) == 1:
        (inner,) = within
        if all(map(_names_picture, inner)) or all(map(_is_entry, inner.values())):
            return rows(inner, image)  # {"data": {"1.jpg": …}}
    if document and all(isinstance(each, Mapping) for each in document.values()):
        return [_by_name(str(name), each, image) for name, each in document.items()]
    return None


def _by_split(parts: Mapping[str, Any], image: str) -> list[Found | str] | None:
    """Rows of a document with a member for each split; one may be empty."""
    known = {
        name: _each(each, image) if _are_objects(each) else rows(each, image)
        for name, each in parts.items()
        if each
    }
    if not known or any(found is None for found in known.values()):
        return None
    return [
        each if isinstance(each, str) else (each[0], {**each[1], "split": split_named(name)})
        for name, found in known.items()
        for each in found or ()
    ]


def _in_class(found: Found | str, name: str) -> Found | str:
    """A row of a list that is called like the class, and so is the file (NWPU-Captions)."""
    if isinstance(found, str) or not found[0].startswith(name):
        return found
    return f"{name}/{found[0]}", {"label": name, **found[1]}


def _each(entries: Iterable[Any], image: str) -> list[Found | str]:
    return [row(entry, image) or lacks(entry) for entry in entries]


def _by_name(name: str, entry: Mapping[str, Any], image: str) -> Found:
    """A row under a file's name, or under a number with the file inside."""
    if _names_picture(name) and not image and not find(entry, FILE_FIELDS):
        return name, json_sets.renamed(entry)  # whatever id it has, too
    return row(entry, image) or (name, dict(entry))


def line(value: Any, image: str = "") -> list[Found]:
    """The rows of one line of JSON: an object, or a picture's name and its caption as a pair or as
    the only member of an object; none if it names no file."""
    found = row(value, image)
    if found is not None:
        return [found]
    is_only = isinstance(value, Mapping) and len(value) == 1 and all(map(_names_picture, value))
    known = rows(value if is_only else [value], image) if is_only or _are_pairs([value]) else ()
    return [each for each in known or () if not isinstance(each, str)]


def row(entry: Any, image: str = "") -> Found | None:
    """One object as a row; None if it names no file."""
    if not isinstance(entry, Mapping):
        return None
    values = _task(entry) or json_sets.renamed(entry)
    turns = first_filled(values, CONVERSATIONS)
    column = image if image in values else _file_column(values)
    name = _name(values.pop(column, None)) if column else _picture_within(values, turns)
    if not name and not image:
        name = _name_by_id(values)
    if not name:
        return None
    if column == "filepath" and isinstance(values.get("filename"), str):
        name = f"{name}/{values.pop('filename')}"  # Karpathy's: a folder and a name in it
    if turns and not find(values, TEXT_FIELDS) and isinstance(values[turns], list):
        values["caption"] = answer(values.pop(turns))
    for field in find(values, TEXT_FIELDS):
        if _are_objects(values[field]):
            with contextlib.suppress(TypeError):  # said of the row later
                said = said_in(values[field])
                if not any(each.language for each in said):
                    values[field] = [each.text for each in said]
    split = values.get("split", values.get("set_name"))
    if isinstance(split, str):
        values["split"] = split_named(split) or split
    return name, values


def _file_column(values: Mapping[str, Any]) -> str:
    """The name under which a file is named, rather than a link to one; empty if there is none."""
    found = find_files(values)
    filled = [name for name in found if is_filled(values[name])]
    files = [name for name in filled if not str(values[name]).startswith(("http://", "https://"))]
    return next(iter((*files, *filled, *found)), "")


def _task(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a task of Label Studio; empty if it is none."""
    data = entry.get("data")
    notes = entry.get("annotations", entry.get("completions"))
    if not isinstance(data, Mapping) or not isinstance(notes, list):
        return {}
    values = {str(name): value for name, value in data.items()}
    captions = []
    for note in notes if _are_objects(notes) else ():
        for result in note["result"] if _are_objects(note.get("result")) else ():
            said = result.get("value")
            if isinstance(said, Mapping) and "text" in said:
                captions.append(said["text"])
            elif isinstance(said, Mapping) and isinstance(said.get("choices"), list):
                values.setdefault("label", *said["choices"][:1])
    # What people wrote goes before what the task came with.
    return {**values, "captions": captions} if captions else values


def lacks(entry: Any) -> str:
    """Why an object is no row, for the log of skipped records."""
    if isinstance(entry, Mapping):
        for name in find(entry, FILE_FIELDS):
            if isinstance(entry[name], list) and len(entry[name]) > 1:
                return f"names {len(entry[name])} pictures in {name!r}; a record has one"
        links = find(entry, LINK_FIELDS)
        if links:
            return f"names no image file; {links[0]!r} is a link: download the pictures first"
    return "names no image file"


def _name(value: Any) -> str:
    """A file's name, or a picture as text, out of what stands for one; empty if it is neither."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):  # as Hugging Face `datasets` writes a picture, and chats
        known = (value.get(member) for member in _PICTURE_MEMBERS)
        value = next((each for each in known if isinstance(each, str) and each.strip()), "")
    return value.strip() if isinstance(value, str) else ""


def _name_by_id(values: Mapping[str, Any]) -> str:
    """A file's name without its ending by its id, as COCO and RedCaps have them."""
    given = values.get(first_filled(values, ID_FIELDS[:-1]) or "")
    if isinstance(given, bool) or not isinstance(given, int | str) or not find(values, TEXT_FIELDS):
        return ""
    folder = values.get("subreddit")
    return f"{folder}/{given}" if isinstance(folder, str) and folder else str(given)


def _picture_within(values: Mapping[str, Any], turns: str | None) -> str:
    """The first picture in the turns of a chat; empty if there is none."""
    for turn in values[turns] if turns and isinstance(values[turns], list) else ():
        parts = turn.get("content") if isinstance(turn, Mapping) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping):
                name = _name(part.get("image_url")) or _name(part.get("image"))
                if name:
                    return name
    return ""


def without_captions(document: Any) -> str:
    """What annotations of COCO's layout hold if they are no captions; empty if they are."""
    notes = document.get("annotations") if isinstance(document, Mapping) else None
    if not _are_objects(notes) or not _are_objects(document.get("images")):
        return ""
    boxes = ("bbox", "segmentation", "keypoints", "segments_info")
    is_of_pictures = all("category_id" in each and not find(each, boxes) for each in notes)
    if any("caption" in note for note in notes) or is_of_pictures:
        return ""
    return ", ".join(sorted({str(name) for note in notes[:100] for name in note}))


def links_in(document: Any) -> str:
    """The name under which a document has links in place of files; empty if it names files."""
    entry = document[0] if _are_objects(document) else document
    if not isinstance(entry, Mapping) or find(entry, (*FILE_FIELDS, *ID_FIELDS[:-1])):
        return ""
    return next(iter(find(entry, LINK_FIELDS)), "")


def _coco(images: Iterable[Any], notes: Iterable[Any], categories: Any) -> Iterable[Found | str]:
    """Rows of COCO's layout, with captions or, as iNaturalist's, a category of each picture."""
    captions: dict[str, list[Any]] = {}
    labels: dict[str, list[Any]] = {}
    known = categories if _are_objects(categories) else ()
    names = {str(each.get("id")): each.get("name") for each in known}
    left_out = 0
    for note in notes:
        if note.get("is_rejected") is True or note.get("is_precanned") is True:
            left_out += 1  # spam, or that the picture shows nothing, by VizWiz's own judgement
            continue
        key = str(note.get("image_id"))
        captions.setdefault(key, []).append(note.get("caption"))
        if "category_id" in note and "caption" not in note:
            label = names.get(str(note["category_id"]), note["category_id"])
            if label not in labels.setdefault(key, []):
                labels[key].append(label)
    if left_out:
        _LOG.warning("%d captions marked is_rejected or is_precanned are left out", left_out)
    for each in images:
        found = row({name: each[name] for name in ("file_name", "id") if name in each})
        if found is None:
            yield lacks(each)
            continue
        name, values = found
        key = str(each.get("id"))
        # Several are no class, but a list that goes into meta.
        own = labels.get(key, [])
        label = {"label": own[0] if len(own) == 1 else own} if own else {}
        yield name, {**values, **label, "captions": captions.get(key, [])}


def _columns(document: Mapping[str, Any], image: str) -> list[dict[str, Any]] | None:
    """The rows of a document of columns, as lists or, by pandas, as objects by row."""
    files = document.get(image or (find(document, FILE_FIELDS) or [""])[0])
    if isinstance(files, list):
        count = range(len(files))
        lists = {n: v for n, v in document.items() if isinstance(v, list) and len(v) == len(files)}
        return [{name: column[i] for name, column in lists.items()} for i in count]
    if isinstance(files, Mapping) and not any(map(_is_entry, files.values())):
        objects = {n: v for n, v in document.items() if isinstance(v, Mapping)}
        return [{name: column.get(i) for name, column in objects.items()} for i in files]
    return None


def _is_entry(value: Any) -> bool:
    """Whether it is an object that names a picture file of its own."""
    return isinstance(value, Mapping) and _names_picture(value.get(_file_column(value)))


def _are_pairs(value: Any) -> TypeGuard[list[tuple[str, Any]]]:
    """Whether it is a list of a name and captions each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, list)
            and len(each) == 2
            and isinstance(each[0], str)
            and _names_picture(each[0])
            and _is_caption(each[1], in_doubt=True)
            for each in value
        )
    )


def _are_classed(value: Any) -> TypeGuard[list[tuple[str, int, str]]]:
    """Whether it is a list of a name, the number of a class and its name each, as CoOp's splits."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, list)
            and len(each) == 3
            and _names_picture(each[0])
            and isinstance(each[1], int)
            and isinstance(each[2], str)
            for each in value
        )
    )


def _are_objects(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _names_picture(name: Any) -> bool:
    return isinstance(name, str) and pathlib.PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_caption(value: Any, *, in_doubt: bool) -> bool:
    """Whether it is a text or a list of them; else ``in_doubt``, but for an object."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return True
    return isinstance(value, str) or (in_doubt and not isinstance(value, Mapping))
