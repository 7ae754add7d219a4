"""What is in a folder or file that can't be imported as it is, and what to do instead."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Iterable, Sequence

from jaxclip.data import file_kinds
from jaxclip.data.importer import published, table_rows
from jaxclip.data.importer.items import Cursor
from jaxclip.data.importer.pictures import IMAGE_SUFFIXES
from jaxclip.data.importer.table import TableReader
from jaxclip.data.importer.tars import TarReader
from jaxclip.data.record import BadRecord

TAR_ENDINGS = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
# A folder with more tables keeps something else in them.
MAX_TABLES = 16
# How file_kinds says that it knows nothing.
_VAGUE = ("no known kind", "text (")


def with_pictures(reader: TableReader, table: pathlib.Path) -> TableReader:
    """The reader of a table.

    Raises:
      ValueError: none of the pictures that the table names is there, but an archive.
    """
    if not reader.has_pictures():
        endings = (*file_kinds.ARCHIVES, *TAR_ENDINGS)
        files = sorted(each.name for each in table.parent.iterdir() if each.is_file())
        packed = next((name for name in files if name.lower().endswith(endings)), "")
        if packed:
            way = ", or say --format webdataset" if packed.lower().endswith(TAR_ENDINGS) else ""
            raise ValueError(
                f"none of the first pictures that {table} names is there; unpack {packed} "
                f"first{way}"
            )
    return reader


def check_tables(path: pathlib.Path, tars: Sequence[pathlib.Path]) -> None:
    """Raise ValueError if tars are of no use: nothing but pictures, of which a table beside them
    speaks, or a usual set without any."""
    for tar in tars:
        usual = published.in_other_files(tar)
        if usual:
            raise ValueError(f"{str(tar)!r} holds no pictures in files of their own{usual}")
    first = next(TarReader(tars[:1]).items(Cursor()), None) if path.is_dir() else None
    item = first[1] if first else None
    if not isinstance(item, BadRecord) or item.reason != "empty_caption":
        return
    for table in candidates(path):
        try:
            TableReader(table)
        except (OSError, ValueError):
            continue  # a table of something else
        raise ValueError(
            f"{tars[0]} holds pictures without captions; if {table.name} beside it has those, "
            "unpack the tar first; if not, move the table away"
        )


def check_no_data_set(files: Sequence[str]) -> None:
    """Raise ValueError if TFRecord files are the shards of a TFDS data set."""
    for folder in sorted({pathlib.Path(file).parent for file in files}):
        if (folder / "dataset_info.json").is_file():
            raise ValueError(f"{str(folder)!r} is a data set already: data.name={str(folder)!r}")


def no_table(path: pathlib.Path, encoding: str, *, texts: bool = True) -> str:
    """Why the first table in a folder is not one of pictures and captions, for an error.

    Texts come last, or not at all: most are no tables.
    """
    is_text = {each: table_rows.suffix(each) == ".txt" for each in candidates(path)}
    for table in sorted(is_text, key=lambda each: is_text[each]):
        if is_text[table] and not texts:
            break
        try:
            TableReader(table, encoding=encoding)
        except (OSError, ValueError) as error:
            return f"; {error}"
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
        if suffix in file_kinds.ARCHIVES:
            return f"; unpack {file.name} first"
        if suffix in table_rows.SPREADSHEETS:
            return f"; {file.name} is a spreadsheet: save it as CSV"
        if suffix in (".arrow", ".feather") or file.name == "dataset_dict.json":
            place = path if path.is_file() else file.parent
            return f"; what save_to_disk of `datasets` wrote is read in place: arrow:{place}"
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
        is_own = is_own or file.suffix.lower() in IMAGE_SUFFIXES
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
    if len(found) > MAX_TABLES:
        return []
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
    with open(file, "rb") as raw:
        return raw.read(1024)
