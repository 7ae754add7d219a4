"""How other people's tables, JSON files, tars and folders name splits and the parts of a record.

Names are compared without regard to letter case, blanks, ``_``, ``-`` and ``.``. Where several
occur, the first one here that has a value counts.
"""

from __future__ import annotations

import functools
import logging
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LOG = logging.getLogger(__name__)

FILE_FIELDS = (
    "file", "filepath", "file_path", "file_name", "filename", "image", "image_path", "img",
    "img_path", "path", "image_name", "image_file", "images", "image_file_name", "image_filename",
    "img_name", "file_names", "image_file_names", "images_file_names", "image_base64", "image_b64",
    "img_b64", "base64", "image_data", "media_name", "photo_path", "photo", "picture",
    "image_index", "path_to_image", "filepaths", "file_paths", "image_uri", "image_gcs_uri",
    "local_path", "image_local_path", "rel_path", "relative_path", "image_rel_path", "img_file",
    "img_filename", "fname", "picture_path", "pic", "pic_path",
)  # fmt: skip
TEXT_FIELDS = (
    "texts", "captions", "text", "caption", "txt", "title", "prompt", "alt_text", "alt",
    "description", "sentences", "sentence", "comment", "raw", "reference_strs", "image_caption",
    "caption_str", "caption_en", "text_en", "en_caption", "raw_caption", "long_caption",
    "short_caption", "synthetic_caption", "generated_caption", "image_description", "descriptions",
    "re_caption", "recaption", "org_caption", "desc", "paragraph", "img_title", "img_desc",
    "caption_reference_description", "caption_attribution_description",
    "caption_alt_text_description", "report", "findings", "impression", "product_display_name",
    "product_name", "product_title", "product_description", "prod_name", "detail_desc",
    "tag_string", "finding_labels", "annotations_captions", "sentences_raw",
    "caption_text", "vlm_caption", "original_caption", "img_caption", "image_text",
    "detailed_caption", "dense_caption", "blip_caption", "cogvlm_caption", "llava_caption",
    "top_caption",
)  # fmt: skip
KEY_FIELDS = ("key", "id")
# Name pictures only where nothing else does, and then without their ending; the last one only in
# tables of rows.
ID_FIELDS = ("image_id", "img_id", "photo_id", "id")
LINK_FIELDS = ("url", "image_url", "urls", "link", "image_link", "img_url", "image_urls")
LABEL_FIELDS = ("label", "class", "cls", "prediction_string", "labels", "class_name", "class_id")
# Are labels only where there are neither these nor captions; else they say something more.
ALSO_LABELS = (
    "label_name", "category_name", "category", "target", "diagnosis", "dx", "breed", "species",
)  # fmt: skip

# Say the split of a record, where their value is one.
SPLIT_FIELDS = (
    "split", "set_name", "subset", "partition", "phase", "dataset_split", "data_split",
    "split_name", "usage", "set",
)  # fmt: skip

# Members of a record's meta that fields of a batch ask for: a tag (or a list of them) for each
# caption, captions that are wrong, boxes, and a text for each box.
CAPTION_TAGS, HARD_NEGATIVES, BOXES = "caption_tags", "hard_negatives", "boxes"
REGION_TEXTS = "region_texts"


# Texts that programs write for a value that is missing.
_MISSING = frozenset((
    "nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "N/A", "n/a", "#N/A", "NaT", "\\N",
))  # fmt: skip
# Characters that show nothing, at the ends of a text.
_UNSEEN = "\ufeff\u200b\u200e\u200f\u2060\u00ad"


def said(text: str) -> str:
    """A text without what shows nothing at its ends; empty if it says nothing."""
    text = text.replace("\0", " ").strip().strip(_UNSEEN).strip()
    return "" if text in _MISSING else text


def is_filled(value: Any) -> bool:
    """Whether a value says anything: no None, NaN, blank text, or list of nothing but those.

    What is nested as deep as no person nests says nothing.
    """
    try:
        return _is_filled(value)
    except RecursionError:
        return False


def _is_filled(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return bool(said(value if isinstance(value, str) else value.decode("utf-8", "replace")))
    if isinstance(value, Sequence):
        return any(map(_is_filled, value))
    return value is not None and value == value  # what tables have for nothing is NaN


@functools.lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """A name as it is compared: ``Alt-Text`` is ``alttext``."""
    return re.sub(r"[\s_.\-]+", "", name).lower()


@functools.lru_cache(maxsize=64)
def _plain_names(known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(plain, known)))


def is_among(name: str, known: Sequence[str]) -> bool:
    """Whether a name is one of those that are known."""
    return plain(name) in _plain_names(tuple(known))


def find(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Those of ``names`` that are ``known``, in the order of ``known``."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        if isinstance(name, str):
            spelled.setdefault(plain(name), []).append(name)
    return [name for each in _plain_names(tuple(known)) for name in spelled.get(each, ())]


def find_files(names: Iterable[str], ids: Sequence[str] = ()) -> list[str]:
    """Those of ``names`` under which picture files are named, the likeliest first.

    That is :data:`FILE_FIELDS`; where there is none, a single ``photo_file_name``, as Hugging Face
    `datasets` has such names; else ``ids``.
    """
    names = list(names)
    own = [n for n in names if isinstance(n, str) and re.search(r"_file_names?$", n, re.I)]
    return find(names, FILE_FIELDS) or (own if len(own) == 1 else find(names, ids))


def first_filled(values: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """The first known name that has a value; else the first that occurs at all; else None."""
    found = find(values, known)
    return next((name for name in found if is_filled(values[name])), found[0] if found else None)


@functools.cache  # of all files of a data set it is said once
def _say(line: str) -> None:
    _LOG.warning(line)


def say_which_picture(names: Sequence[str], way: str) -> None:
    """Log which of a record's pictures is taken, unless there is one or it is called ``image``.

    Args:
      names: of the columns or features with pictures; the first is taken.
      way: how to name another one.
    """
    if len(names) > 1 and names[0].lower() != "image":
        _say(f"the picture of a record is {names[0]!r}, not {', '.join(names[1:])}; {way}")


def say_which_class(names: Sequence[str], way: str) -> None:
    """Log which of several columns of classes is taken, unless it is called ``label``.

    Args:
      names: of the columns; the first is taken.
      way: how to name another one.
    """
    if len(names) > 1 and names[0].lower() != "label":
        _say(f"the class of a record is {names[0]!r}, not {', '.join(names[1:])}; {way}")


def say_of_splits(file: object, columns: Iterable[str]) -> None:
    """Log that a column of splits is not heeded in place, where there is one."""
    found = find(columns, SPLIT_FIELDS[:2])
    if found:
        _say(
            f"{file} has a column {found[0]!r}, which does not count in place: all rows of a file "
            f"are of one split; write ?split={found[0]} behind the name of the data set, or import "
            "it, and the splits are kept"
        )


def say_of_delta(folder: pathlib.Path) -> None:
    """Log that a folder is a table of Delta Lake, if it is one."""
    if (folder / "_delta_log").is_dir():
        _say(
            f"{folder} is a table of Delta Lake, whose log is not read: rows that it deleted or "
            "changed count where their files are still there; write it as plain Parquet first"
        )


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of classes, of which a data set wants each once: a second ``missile`` (ImageNet has two
    by CLIP's names) becomes ``missile #2``."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name} #{counts[name]}")
    return found


# Folders that systems leave among people's files, and what is in them.
_LEFTOVERS = frozenset((
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "#recycle", "lost+found",
))  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: hidden, or left by a system."""
    return name.startswith(".") or name in _LEFTOVERS


# Names of folders that are splits.
SPLITS = (
    "train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval",
)  # fmt: skip


def split_of(path: str) -> str:
    """The split that a file belongs to by the first folder of its path; empty for none."""
    first, slash, _ = path.removeprefix("./").partition("/")
    return first if slash and first.lower() in SPLITS else ""


def split_within(path: str | os.PathLike[str]) -> str:
    """The split that a file belongs to by any folder of its path, the outermost; empty for none.

    The Hugging Face hub calls a part of one ``partial-train``.
    """
    folders = [
        each.removeprefix("partial-").removeprefix("split=")
        for each in pathlib.PurePath(path).parts[:-1]
    ]
    return next((each for each in folders if each.lower() in SPLITS), "")


def given_by_folders(path: str | os.PathLike[str]) -> dict[str, str]:
    """What the folders right around a file say of all its rows: ``split=train/lang=en/0.parquet``.

    So Hive, Spark, pandas and Arrow write the columns that they partition a table by.
    """
    found: dict[str, str] = {}
    for folder in reversed(os.fspath(path).split("/")[:-1]):
        name, equals, value = folder.partition("=")
        if not equals or not name:
            break
        if value != "__HIVE_DEFAULT_PARTITION__":
            found.setdefault(name, urllib.parse.unquote(value))
    return found


def is_left_by_tools(name: str) -> bool:
    """Whether a file or folder beside Parquet files is of a program's own (``_temporary``,
    ``_delta_log``, ``_metadata``), or none of the user's at all."""
    return is_hidden(name) or (name.startswith("_") and "=" not in name)


def split_named(value: Any) -> str:
    """The split that a value of a column ``split`` stands for; empty for none.

    Karpathy's ``restval`` belongs to the training set.
    """
    name = value.strip().lower() if isinstance(value, str) else ""
    return "train" if name == "restval" else name if name in SPLITS else ""


def take_split(values: dict[str, Any]) -> str:
    """The split that a row or an object names, which is taken out of it; empty for none."""
    for name in find(values, SPLIT_FIELDS):
        if split := split_named(values[name]):
            values.pop(name)
            return split
    return ""


def split_in_name(name: str) -> str:
    """The split that a word of a file's name says: ``captions_val2017.json``; empty for none."""
    words = re.split(r"[^a-z]+", name.lower().partition(".")[0])
    return next((word for word in words if word in SPLITS), "")


def splits_of_files(
    files: Sequence[str | os.PathLike[str]], root: str | os.PathLike[str] = ""
) -> list[str]:
    """The split of each of several files by their names: ``train-00000-of-00005.parquet``.

    They say so if all of them do, and not all the same; else each is "". Where the files are in
    folders within ``root``, these are the splits if all are called so, be it one: ``test/0.tar``.
    """
    found = [split_in_name(pathlib.PurePath(file).name) for file in files]
    if all(found) and len(set(found)) > 1:
        return found
    if root:
        found = [split_within(os.path.relpath(file, root)) for file in files]
        if all(found):
            return found
    return [""] * len(files)
