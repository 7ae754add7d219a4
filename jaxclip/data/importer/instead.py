"""What is in a folder or file that can't be imported as it is, and what to do instead."""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

from jaxclip.data import file_kinds
from jaxclip.data.importer import packed, published, table_parts, table_rows
from jaxclip.data.importer.items import Cursor, Item
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.importer.table import TableReader
from jaxclip.data.importer.tars import TarReader
from jaxclip.data.importer.zip_index import ENDING

TAR_ENDINGS = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
# A folder with more tables keeps something else in them.
MAX_TABLES = 16
# Samples of a tar that tell whether it is a WebDataset.
_LOOKED_AT = 1000
_OF_NO_SAMPLES = ("empty_caption", "missing_image", "corrupted")
# How file_kinds says that it knows nothing.
_VAGUE = ("no known kind", "text (")


class PackedError(ValueError):
    """Pictures are in an archive that is not looked into.

    Args:
      message: for people.
      tar: the archive, if it is a tar.
    """

    def __init__(self, message: str, tar: pathlib.Path | None = None):
        super().__init__(message)
        self.tar = tar


def with_pictures(reader: TableReader, table: pathlib.Path) -> TableReader:
    """The reader of a table.

    Raises:
      PackedError: none of the pictures that the table names is there, but a tar.
      ValueError: none is there, but another archive.
    """
    if not reader.has_pictures() and os.path.isdir(table.parent):
        endings = (*file_kinds.ARCHIVES, *TAR_ENDINGS)
        # Also those that are looked into.
        files = sorted(each.name for each in os.scandir(table.parent) if each.is_file())
        files.sort(key=lambda name: not name.lower().endswith(TAR_ENDINGS))
        archive = next((name for name in files if name.lower().endswith(endings)), "")
        if archive.lower().endswith(ENDING):
            raise ValueError(
                f"none of the first pictures that {table} names is there, nor in {archive} "
                "beside it"
            )
        if archive:
            way = ", or say --format webdataset" if archive.lower().endswith(TAR_ENDINGS) else ""
            raise PackedError(
                f"none of the first pictures that {table} names is there; unpack {archive} "
                f"first{way}",
                table.parent / archive if way else None,
            )
    return reader


def check_usual(tar: pathlib.Path) -> None:
    """Raise ValueError if a tar is a usual set without pictures."""
    usual = published.in_other_files(tar)
    if usual:
        raise ValueError(f"{str(tar)!r} holds no pictures in files of their own{usual}")


def check_tar(path: pathlib.Path, tar: pathlib.Path) -> None:
    """Raise PackedError if a tar is no WebDataset, but holds pictures without captions.

    Args:
      path: the source.
      tar: the first one in it.
    """
    count = 0
    for _, item in itertools.islice(TarReader([tar]).items(Cursor()), _LOOKED_AT):
        if isinstance(item, Item) or item.reason not in _OF_NO_SAMPLES:
            return
        count += item.reason == "empty_caption"
    if count:
        names = [each.name for each in candidates(path)] if path.is_dir() else []
        raise PackedError(
            f"{tar} holds pictures without captions; unpack it and import the folder"
            + (f" with {names[0]} in it, if that has the captions" if names else "")
            + ", or say --format webdataset",
            tar,
        )


def check_no_data_set(files: Sequence[str]) -> None:
    """Raise ValueError if TFRecord files are the shards of a TFDS data set."""
    for folder in sorted({pathlib.Path(file).parent for file in files}):
        if (folder / "dataset_info.json").is_file():
            raise ValueError(f"{str(folder)!r} is a data set already: data.name={str(folder)!r}")


def no_table(path: pathlib.Path, encoding: str) -> str:
    """Why the first table in a folder is not one of pictures and captions, for an error.

    Texts come last: most are no tables.
    """
    texts = [each for each in candidates(path) if table_rows.suffix(each) == ".txt"]
    return no_table_but_texts(path, encoding) or _why_none(texts, encoding)


def no_table_but_texts(path: pathlib.Path, encoding: str) -> str:
    """As :func:`no_table`, but ``.txt`` is none."""
    tables = [each for each in candidates(path) if table_rows.suffix(each) != ".txt"]
    return _why_none(tables, encoding)


def _why_none(tables: Sequence[pathlib.Path], encoding: str) -> str:
    for table in tables[:1]:
        try:
            is_left_out = TableReader(table, encoding=encoding).has_pictures()
        except (OSError, ValueError) as error:
            return f"; {error}"
        if is_left_out:  # which the log says
            return ""
        return f"; none of the first pictures that {table.name} names is here"
    return ""


def what_instead(path: pathlib.Path) -> str:
    """What to do with a folder, or file, that is nothing we import, for an error."""
    usual = published.in_other_files(path)
    if usual:
        return usual
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        suffix = file.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            if not path.is_file():
                continue
            return "; it is one picture: name the folder that it is in"
        if suffix in file_kinds.ARCHIVES and suffix != ENDING:
            return f"; unpack {file.name} first"
        if suffix in table_rows.SPREADSHEETS:
            return f"; {file.name} is a spreadsheet: save it as CSV"
        if ".array_record" in file.name:
            return f"; it is a data set already: data.name={str(path)!r}"
    return _other_kind(files[:MAX_TABLES])


def what_within(path: pathlib.Path) -> str:
    """What the first files in the folders of a folder without any pictures are, for an error."""
    deeper = (each for each in published.names(path) if each.parent != path and each.is_file())
    return _other_kind(itertools.islice(deeper, MAX_TABLES))


def _other_kind(files: Iterable[pathlib.Path]) -> str:
    """The first of some files that is of a kind that tells why nothing of it is read."""
    for file in files:
        is_own = table_rows.suffix(file) in table_rows.SUFFIXES or not file.is_file()
        is_own = is_own or file.suffix.lower() in (*IMAGE_SUFFIXES, ENDING)
        kind = _VAGUE[0] if is_own else file_kinds.kind_by_name(file.name)
        kind = kind or file_kinds.kind_of(_begin(file))
        if not kind.startswith(_VAGUE):
            return f"; {file.name} is {kind}"
    return ""


def candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files in a folder that may be tables of captions; COCO's are one folder below."""
    files = [file for file in folder.iterdir() if file.is_file()]
    pictures = {file.stem for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    found = [
        file
        for file in files
        if table_rows.suffix(file) in table_rows.SUFFIXES
        and ".lemma." not in file.name  # Flickr8k's captions in the basic forms of their words
        and "sample_submission" not in file.name  # Kaggle's form for answers
        # Not what lies beside a picture.
        and file.stem not in pictures
        and pathlib.PurePath(file.stem).stem not in pictures
    ]
    if len(table_parts.series(found)) > MAX_TABLES:
        return []
    if len(found) > 1:
        found = [file for file in found if file.stat().st_size]  # Spark leaves empty parts
    inner = [
        file
        for name in ("annotations", "annotation")
        if (folder / name).is_dir()
        for file in (folder / name).iterdir()
        if table_rows.suffix(file) in table_rows.SUFFIXES
    ]
    # COCO's annotations are of many kinds, and large.
    inner = [file for file in inner if "caption" in file.name.lower()] or inner[:MAX_TABLES]
    return sorted(found) + sorted(inner)


def _begin(file: pathlib.Path) -> bytes:
    try:
        with file.open("rb") as raw:
            return bytes(raw.read(1024))
    except OSError as error:
        if not packed.is_damage(error):
            raise
        return b""
