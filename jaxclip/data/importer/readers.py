"""Finds out what a source is and opens its reader."""

from __future__ import annotations

import itertools
import logging
import os
import pathlib
import re
from collections.abc import Sequence

from jaxclip.data import benchmark_files, file_kinds, patterns, remote, webdataset
from jaxclip.data.importer import (
    archives,
    arrow_files,
    folder_sources,
    folders,
    instead,
    table_rows,
)
from jaxclip.data.importer.arrow import ArrowReader
from jaxclip.data.importer.items import Cursor, Item, Reader
from jaxclip.data.importer.parquet import ParquetReader
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.importer.tars import TarReader
from jaxclip.data.importer.tfrecords import TFRecordReader
from jaxclip.data.naming import is_hidden, is_left_by_tools, say_of_delta, splits_of_files
from jaxclip.data.record import BadRecord

_LOG = logging.getLogger(__name__)

FORMATS = ("folder", "webdataset", "parquet", "arrow", "tfrecord")
_ENDINGS = {
    "webdataset": instead.TAR_ENDINGS,
    "parquet": (".parquet",),
    "arrow": arrow_files.ENDINGS,
    "tfrecord": tuple(f".{e}{z}" for e in ("tfrecord", "tfrecords", "tfrec") for z in ("", ".gz")),
}
_SHARD = re.compile(r"-\d+-of-\d+$")

_DEEPEST = folder_sources.DEEPEST
# How many records tell whether a folder is a data set, and how many archives a message names.
_LOOKED_AT, _NAMED = 100, 4


def open_reader(
    source: str | os.PathLike[str],
    format: str = "auto",
    image_column: str = "",
    text_column: str = "",
    encoding: str = "utf-8",
) -> Reader:
    """Open a source of records.

    Args:
      source: a folder, a file, or a pattern of files with ``{000..009}``, ``*`` and ``?``.
      format: one of :data:`FORMATS`, or "auto" to tell by the names of the files.
      image_column: in tables and Parquet, the column with images; empty to find it.
      text_column: in tables and Parquet, the column with captions; empty to find it.
      encoding: of tables that are not JSON.

    Returns:
      Its reader.

    Raises:
      FileNotFoundError: there is no such file or folder, or nothing fitting in it.
      ValueError: an unknown format, or one that cannot be told.
    """
    if format not in ("auto", *FORMATS):
        raise ValueError(f"format={format!r} must be 'auto', {', '.join(map(repr, FORMATS))}")
    text = os.fspath(source)
    if not text:  # would be this very folder
        raise FileNotFoundError("the source is empty; name a folder, a file, or a pattern of files")
    kind, colon, rest = text.partition(":")
    if colon and kind in _ENDINGS and format in ("auto", kind):
        text, format = rest, kind  # as it is named where it is read in place
    text = patterns.local_path(text)
    if remote.is_remote(text):
        hub = remote.hub_address(text)
        if hub:
            raise ValueError(f"{text!r} is on the Hugging Face hub: download it, or read {hub!r}")
        if archives.is_archive(pathlib.PurePath(text)):
            raise ValueError(
                f"{text!r} is elsewhere, and imports are of files of this machine: copy it first"
            )
        raise ValueError(
            f"{text!r} is elsewhere, and imports are of files of this machine: copy them, or read "
            f"tars and Parquet in place, by data.name='webdataset:{text}' or "
            f"'parquet:{text}'"
        )
    path = pathlib.Path(text)
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise ValueError(f"{text!r} is a pipe, socket or device, not a file")
    named = [] if path.is_dir() or archives.around(path) else _expand(text)
    columns = (image_column, text_column)
    try:
        return _through_archives(path, named, format, columns, encoding, archives.ZIP)
    except instead.PackedError as error:
        if not error.tar or not archives.is_archive(error.tar, archives.ALL):
            raise
    # The tar is no WebDataset, but folders.
    return _through_archives(path, named, "folder", columns, encoding, archives.ALL)


def _through_archives(
    path: pathlib.Path,
    named: list[str],
    format: str,
    columns: tuple[str, str],
    encoding: str,
    kinds: Sequence[str],
) -> Reader:
    """The reader of a source with its archives of some kinds unpacked.

    Where a folder is a data set without them, they may add to it, but not be read in its place.
    """
    place, packed = archives.of_source(path, named, _DEEPEST, encoding, kinds)
    if packed is None:
        return _open(place, named, format, columns, encoding)
    on_disk = _on_disk(path, format, columns, encoding) if path.is_dir() else None
    try:
        reader = _open(place, named, format, columns, encoding)
    except instead.PackedError:
        raise
    except (FileNotFoundError, ValueError) as error:
        if on_disk is not None:
            return _left_out(packed, error, on_disk[0])
        if packed.problems:
            raise type(error)(f"{error}; {packed.problems[0].detail}") from error
        raise
    if isinstance(reader, TarReader | TFRecordReader):
        return reader  # archives beside these are something else
    if on_disk is not None and not _holds(reader, on_disk[1]):
        return _left_out(packed, "what is on the disk would not be read as it is", on_disk[0])
    return archives.ArchiveReader(reader, packed)


def _on_disk(
    path: pathlib.Path, format: str, columns: tuple[str, str], encoding: str
) -> tuple[Reader, Item] | None:
    """The reader of a folder without its archives, and the first whole record; None if none is."""
    try:
        reader = _open(path, [], format, columns, encoding)
        for _, item in itertools.islice(reader.items(Cursor()), _LOOKED_AT):
            if isinstance(item, BadRecord) or (not item.texts and item.label is None):
                continue
            if isinstance(item.image, bytes) or item.image.is_file():
                return reader, item
    except (OSError, ValueError):
        pass
    return None


def _holds(reader: Reader, record: Item) -> bool:
    """Whether a reader has a record: its picture, with the same captions and class, or with
    captions where it has none."""

    def picture(item: Item) -> bytes | str:
        return item.image if isinstance(item.image, bytes) else os.path.abspath(item.image)

    def is_same(item: Item) -> bool:
        has_more = bool(item.texts) and not record.texts
        return has_more or (item.texts, item.label) == (record.texts, record.label)

    wanted = picture(record)
    items = (item for _, item in reader.items(Cursor()) if isinstance(item, Item))
    return any(picture(item) == wanted and is_same(item) for item in items)


def _left_out(packed: archives.Archives, why: object, reader: Reader) -> Reader:
    names = ", ".join(file.name for file in packed.files[:_NAMED])
    _LOG.warning("archives are left out (%s): with them, %s; name one to import it", names, why)
    return reader


def _open(
    path: pathlib.Path, named: list[str], format: str, columns: tuple[str, str], encoding: str
) -> Reader:
    """The reader of a folder, or of the files that are named."""
    text = str(path)
    files = named or [text]
    if path.is_dir():
        files = sorted(
            str(file) for file in path.iterdir() if file.is_file() and not is_hidden(file.name)
        )
        files = files + _in_folders(path, files)
    is_guessed = format == "auto"
    if is_guessed:
        is_saved = path.is_dir() and arrow_files.is_saved(path)
        format = "arrow" if is_saved else _guess(path, files)
    if format == "folder":
        return folder_sources.open_folder(path, columns, encoding, named)
    if format == "arrow" and path.is_dir():
        found = [(split, file) for split, each in arrow_files.of_folder(path) for file in each]
        splits = [split for split, _ in found] if len({split for split, _ in found}) > 1 else ()
        return ArrowReader([file for _, file in found], *columns, splits)
    as_path = type(path)  # with the archives, if there are any
    fitting = [as_path(file) for file in files if _ends(file, _ENDINGS[format])]
    if not path.is_dir() and len(fitting) < len(files):
        fitting = [as_path(file) for file in files]  # named outright, whatever they are called
    folders.check_on_disk(fitting)
    if not fitting:
        raise FileNotFoundError(
            f"{text!r} holds no file that ends in {', '.join(_ENDINGS[format])}; without "
            "--format what is there is found out"
        )
    if format == "webdataset":
        if path.is_dir():
            webdataset.check_complete([str(file) for file in fitting])
        names = benchmark_files.class_names(path) if path.is_dir() else None
        for tar in fitting:
            instead.check_usual(tar)
        if is_guessed:
            instead.check_tar(path, fitting[0])
        return TarReader(fitting, splits_of_files(fitting, path), names or [])
    if format == "tfrecord":
        return TFRecordReader(fitting, splits_of_files(fitting, path))
    if format == "arrow":
        return ArrowReader(fitting, *columns, splits_of_files(fitting, path))
    say_of_delta(path)
    return ParquetReader(fitting, *columns, splits_of_files(fitting, path))


def _expand(pattern: str) -> list[str]:
    try:
        return patterns.expand(pattern)
    except FileNotFoundError as error:
        hub = remote.hub_address(pattern)
        if hub and not pathlib.Path(pattern).parent.exists():
            way = f"; if you mean the Hugging Face hub's, download it, or read {hub!r}"
            raise FileNotFoundError(f"{error}{way}") from error
        raise


def _ends(file: str, endings: tuple[str, ...]) -> bool:
    """Whether a file's name ends so, but for the number of a shard."""
    return _SHARD.sub("", file.lower()).endswith(endings)


def _in_folders(path: pathlib.Path, files: Sequence[str]) -> list[str]:
    """Tars or Parquet files some folders below, if there is nothing of the kind in the folder.

    So do CLIP_benchmark (``test/0.tar``) and the Hugging Face hub (``data/train-….parquet``,
    ``default/train/0000.parquet``) keep them.
    """
    endings = tuple(each for known in _ENDINGS.values() for each in known)
    pictures = any(os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES for file in files)
    if pictures or any(_ends(file, endings) for file in files):
        return []
    return sorted(
        str(folder / name)
        for folder, names in folders.walk(path, _DEEPEST)
        if folder != path and not any(map(is_left_by_tools, folder.relative_to(path).parts))
        for name in names
        if _ends(name, endings) and (folder / name).is_file()
    )


def _guess(path: pathlib.Path, files: list[str]) -> str:
    if path.is_dir() and any((path / table).is_file() for table in folder_sources.TABLES):
        return "folder"
    kinds = {
        format
        for format, endings in _ENDINGS.items()
        if any(_ends(file, endings) for file in files)
    }
    if "tfrecord" in kinds:
        instead.check_no_data_set(files)
    others = kinds - {"parquet"}
    if len(kinds) == 2 and len(others) == 1 and _is_img2dataset(files, *others):
        return others.pop()
    if kinds == {"parquet"} and _is_img2dataset_of_files(files, type(path)):
        return "folder"
    if len(kinds) == 1:
        return kinds.pop()
    if len(kinds) > 1:
        raise ValueError(
            f"{str(path)!r} holds files of several kinds ({', '.join(sorted(kinds))}); say which "
            "with --format, or name the files by a pattern"
        )
    if path.is_dir() or table_rows.suffix(path) in table_rows.SUFFIXES:
        return "folder"
    if path.is_file() and path.suffix.lower() in file_kinds.ARCHIVES:
        return "folder"  # whose error says what to do
    raise ValueError(
        f"{str(path)!r} is neither a folder nor a table ({', '.join(table_rows.SUFFIXES)}), nor do "
        "its names end "
        f"in {', '.join(ending for endings in _ENDINGS.values() for ending in endings)}"
        + ((path.is_file() and instead.what_instead(path)) or "; say what it is with --format")
    )


def _is_img2dataset(files: list[str], format: str) -> bool:
    """Whether each Parquet file only says about a file beside it what is in that, too."""
    names = [os.path.basename(file).lower() for file in files]
    others = {name.partition(".")[0] for name in names if name.endswith(_ENDINGS[format])}
    return all(name.partition(".")[0] in others for name in names if name.endswith(".parquet"))


def _is_img2dataset_of_files(files: list[str], path: type[pathlib.Path]) -> bool:
    """Whether each Parquet file only says what is in a folder of its name, a number (``00000/``).

    What is called otherwise (``train.parquet`` beside ``train/``) may have captions of its own.
    """
    folders = [path(file).with_suffix("") for file in files if file.lower().endswith(".parquet")]
    return all(folder.name.isdecimal() and folder.is_dir() for folder in folders)
