"""The records that are curated: any data set that training reads, or a folder of pictures."""

from __future__ import annotations

import functools
import json
import os
import pathlib

from jaxclip.data import patterns, remote, sources, table_splits
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.importer.items import Cursor, Item, files_stamp, read_image
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.record import REASONS as _REASONS
from jaxclip.data.record import BadRecord, Record, decode_foreign_texts

# Why a record can't be read, in a fixed order: verdicts are numbers into it.
REASONS = tuple(_REASONS)


def open(name: str) -> DataSet:
    """Open a data set by name.

    Args:
      name: as :func:`jaxclip.data.sources.open` takes it; also a folder of pictures with captions,
        or a table of them, as ``jaxclip data import`` takes it, which is one split ``train``.

    Raises:
      FileNotFoundError, ValueError: there is none.
    """
    path = pathlib.Path(name)
    is_table = path.suffix in (".csv", ".tsv", ".jsonl") and path.is_file()
    if is_table or (path.is_dir() and not _is_tfds(path)):
        source = _FolderSource(name)
        return DataSet(name, {"train": len(source)}, lambda split: source)
    return sources.open(name)


def _is_tfds(path: pathlib.Path) -> bool:
    """Whether it is a TFDS data set, or has one below, of which its error should tell."""
    return any(next(path.glob(pattern), None) for pattern in _INFO)


_INFO = ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json")


class _FolderSource(RecordSource):
    """Pictures and captions in files; the list of them is in memory, the pictures are not."""

    def __init__(self, name: str):
        self._items: list[Item | BadRecord] = [
            item for _, item in open_reader(name, "folder").items(Cursor())
        ]
        if not self._items:
            raise ValueError(f"{name!r} holds no records")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record | BadRecord:
        item = self._items[index]
        if isinstance(item, BadRecord):
            return item
        image = read_image(item.image)
        if isinstance(image, BadRecord):
            return BadRecord(image.reason, image.detail, item.key)
        texts, bad = decode_foreign_texts(item.texts)
        if not texts and isinstance(item.label, str):
            texts = (item.label,)
        if not texts:
            return BadRecord("bad_utf8" if bad else "empty_caption", "", item.key)
        label = item.label if isinstance(item.label, int) else -1
        meta = json.dumps(dict(item.meta), ensure_ascii=False) if item.meta else ""
        return Record(image, texts, label, item.key, meta)


@functools.lru_cache(maxsize=4)
def split_source(name: str, split: str) -> RecordSource:
    """The records of a split; each process opens it once."""
    return open(name).source(split)


def record(name: str, split: str, index: int) -> Record | BadRecord:
    """A record by number; whatever is wrong with it is a :class:`BadRecord`."""
    try:
        found = split_source(name, split)[index]
    except OSError as error:
        return BadRecord("unreachable", str(error))
    if isinstance(found, Record) and not found.texts:
        return BadRecord("empty_caption", "", found.key)
    return found


def picture(name: str, split: str, index: int) -> bytes | BadRecord:
    """The encoded picture of a record."""
    found = record(name, split, index)
    return found if isinstance(found, BadRecord) else found.image


def default_split(data_set: DataSet) -> str:
    """``train``, or the only split.

    Raises:
      ValueError: there are several others.
    """
    if "train" in data_set.splits or not data_set.splits:
        return "train"
    if len(data_set.splits) > 1:
        raise ValueError(f"data set {data_set.name!r} has splits {', '.join(data_set.splits)}; "
                         "say which with split")  # fmt: skip
    return next(iter(data_set.splits))


# What is made of another data set, whose name follows.
_OF_ANOTHER = "scenes:"


def stamp(name: str) -> list[str]:
    """Changes where the files of a local data set do."""
    if name.startswith(_OF_ANOTHER):
        return [_OF_ANOTHER, *stamp(name.removeprefix(_OF_ANOTHER))]
    kind, colon, rest = name.partition(":")
    if name in sources.BUILT_IN or remote.is_remote(rest if colon else name):
        return [name]
    path = pathlib.Path(rest if colon and kind in sources.KINDS.names() else name)
    path = pathlib.Path(table_splits.parse(str(path))[0])
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    else:
        files = [pathlib.Path(each) for each in patterns.expand(str(path))]
    return [name, files_stamp(files)]


def check_outside(name: str, workdir: str) -> None:
    """Refuse a workdir in the folder of the source, whose Parquet would be records of it.

    Raises:
      ValueError: it is there.
    """
    kind, colon, rest = name.removeprefix(_OF_ANOTHER).partition(":")
    folder = table_splits.parse(rest if colon and kind in sources.KINDS.names() else name)[0]
    if not os.path.isdir(folder) or remote.is_remote(workdir):
        return
    inner = os.path.relpath(os.path.realpath(workdir), os.path.realpath(folder))
    if inner.split(os.sep)[0] != os.pardir:
        raise ValueError(
            f"workdir {workdir} is in the folder of the source, {folder}, which is only read: name "
            "another one"
        )


def absolute(name: str) -> str:
    """A name of a data set that means the same in any folder."""
    if name.startswith(_OF_ANOTHER):
        return _OF_ANOTHER + absolute(name.removeprefix(_OF_ANOTHER))
    kind, colon, rest = name.partition(":")
    if name in sources.BUILT_IN or "://" in name:
        return name
    if colon and kind in sources.KINDS.names():
        return f"{kind}:{os.path.abspath(os.path.expanduser(rest))}"
    return os.path.abspath(os.path.expanduser(name))
