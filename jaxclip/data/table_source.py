"""Parquet files, and data sets that Hugging Face ``datasets`` saved to disk, read in place.

``parquet:PATTERN`` are files (``{000..009}``, ``*`` and ``?``), all of them one split, ``train``;
or a folder, whose files are put into splits by the folder they are in or by how their names begin
(``train-00000-of-00005.parquet``), as on the Hugging Face hub. ``arrow:FOLDER`` is what
``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote, or has in its cache, or one file of
Arrow's or Feather's. Columns are found by their usual
names, as in ``jaxclip data import``; nothing is copied, and ``datasets`` need not be installed.
With ``?split=COLUMN`` behind either, the values of a column are the splits of the rows;
``?image=COLUMN&text=COLUMN`` names the columns with images and captions.

Arrow files are mapped into memory: any row costs the same. Of a Parquet file a whole group of rows
is read for one of them, so make ``data.shuffle_window`` a few groups long, or import the files.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.data import file_kinds, remote, table_splits
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.importer import arrow_files, parquet
from jaxclip.data.importer.arrow_columns import Columns, columns_of
from jaxclip.data.importer.items import Item, read_image
from jaxclip.data.importer.pictures import Pictures, pictures_named
from jaxclip.data.naming import (
    SPLITS,
    is_left_by_tools,
    say_of_delta,
    say_of_splits,
    split_within,
)
from jaxclip.data.patterns import expand
from jaxclip.data.record import BadRecord, Record, decode_foreign_texts
from jaxclip.data.remote_file import RemoteFile
from jaxclip.registry import nearest

# Groups of rows that are kept decoded; the least recently used one goes first.
_KEPT_GROUPS = 16
# So many of the first names of pictures tell the folder that they are in.
_NAMES = 32


class Group(NamedTuple):
    """Rows that are read at once.

    Attributes:
      file: where they are, a path or an address.
      columns: the names of its columns.
      first: number of the first row within the file.
      rows: number of them.
      read: gives them as a ``pyarrow.RecordBatch``; raises OSError or ValueError where damaged.
      chosen: numbers of those of the rows that are meant; None = all.
    """

    file: Any
    columns: Columns
    first: int
    rows: int
    read: Callable[[], Any]
    chosen: np.ndarray | None = None


def open_parquet(pattern: str) -> DataSet:
    """Open Parquet files as a data set; see the module docstring.

    Raises:
      FileNotFoundError: no file matches, or one that the pattern names does not exist.
      ValueError: a file is damaged or has no column with images, or neither captions nor labels.
    """
    name = f"parquet:{pattern}"
    pattern, query = table_splits.parse(pattern)
    folder = remote.path_of(pattern)
    splits: dict[str, list[Any]] = {}
    if _is_folder(pattern):
        for file in _below(folder):
            inner = str(file).removeprefix(str(folder)).lstrip("/")
            if any(map(is_left_by_tools, inner.split("/"))):
                continue
            splits.setdefault(_split_of(pathlib.PurePosixPath(inner)), []).append(file)
        if not remote.is_remote(pattern):
            say_of_delta(folder)
        if not splits:
            saved = not remote.is_remote(pattern) and any(folder.rglob("*.arrow"))
            more = f"; what save_to_disk of `datasets` wrote is arrow:{folder}" if saved else ""
            raise FileNotFoundError(f"{folder} holds no *.parquet{more}")
    else:
        splits = {"train": [remote.path_of(name) for name in expand(pattern)]}
    found = [(split, _row_groups(file, query)) for split in splits for file in splits[split]]
    return _data_set(name, table_splits.divide(found, query.split))


def _below(folder: Any) -> list[Any]:
    """The Parquet files of a folder and of those in it, sorted.

    Raises:
      OSError: one of the folders can't be read.
    """
    if remote.is_remote(folder):
        return sorted(folder.files_below(".parquet"))

    def fail(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [each for each in folders if not is_left_by_tools(each)]
        found += [pathlib.Path(place, name) for name in names if name.lower().endswith(".parquet")]
    return sorted(found)


def _is_folder(pattern: str) -> bool:
    if not remote.is_remote(pattern):
        return pathlib.Path(pattern).is_dir()
    return not pattern.endswith(".parquet") and not set(pattern) & set("*?{")


def _split_of(path: pathlib.PurePath) -> str:
    """The split of a file by its folder or the beginning of its name."""
    if found := split_within(path):
        return found
    begin = path.name.partition("-")[0]
    return begin if begin.lower() in SPLITS else "train"


def _row_groups(file: Any, query: table_splits.Query) -> tuple[list[Group], Any]:
    """The groups of a file, and the values of its column of splits, if one is named."""
    with _opened(file) as opened:
        columns = columns_of(file, opened.schema_arrow, _OPTION, (query.image, query.texts))
        values = None
        if query.split:
            table_splits.check(file, query.split, opened.schema_arrow.names)
            values = opened.read(columns=[query.split]).column(0).combine_chunks()
        else:
            say_of_splits(file, opened.schema_arrow.names)
        metadata = opened.metadata
        counts = [metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    firsts = np.cumsum([0, *counts])
    # Of a remote file the footer is kept: it would be asked for with each group.
    kept = metadata if remote.is_remote(file) else None

    schema = opened.schema_arrow

    def reader(number: int) -> Callable[[], Any]:
        def read() -> Any:
            with _opened(file, kept) as opened:
                same = opened.schema_arrow.equals(schema) and opened.num_row_groups == len(counts)
                if not same or opened.metadata.row_group(number).num_rows != counts[number]:
                    raise ValueError("the file has changed since it was opened; start anew")
                return opened.read_row_group(number).combine_chunks().to_batches()[0]

        return read

    groups = [
        Group(file, columns, int(firsts[number]), count, reader(number))
        for number, count in enumerate(counts)
        if count
    ]
    return groups, values


def _opened(file: Any, metadata: Any = None) -> Any:
    """A ``pyarrow.parquet.ParquetFile``; of a remote one a group is read in few large ranges.

    Raises:
      FileNotFoundError: there is none.
      OSError: it is remote and can't be reached.
      ValueError: it is damaged.
    """
    if not remote.is_remote(file):
        file_kinds.check_is_file(file)
        return parquet.open_file(file)
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.PythonFile(RemoteFile(str(file)), "r")
        return pyarrow.parquet.ParquetFile(source, metadata=metadata, pre_buffer=True)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} is no Parquet file or is damaged: {error}") from error


# How to say which column it is, for errors.
_OPTION = "write ?{}=COLUMN behind the name of the data set"


def open_arrow(name: str) -> DataSet:
    """Open a folder of Hugging Face ``datasets``; see the module docstring.

    Raises:
      FileNotFoundError: there is no such folder, or a file of it is missing.
      ValueError: it is none of ``save_to_disk``, or has no column with images, or neither captions
        nor labels.
    """
    if remote.is_remote(name):
        raise ValueError(
            f"{name}: what save_to_disk wrote is read from this machine's disks only; mount the "
            "bucket, copy it, or save it as Parquet, which is read in place"
        )
    written, (name, query) = f"arrow:{name}", table_splits.parse(name)
    folder = pathlib.Path(name)
    if folder.is_file():
        files: list[tuple[str, list[pathlib.Path]]] = [("train", [folder])]
    elif folder.is_dir():
        files = arrow_files.of_folder(folder)
    else:
        if os.path.lexists(folder):
            file_kinds.check_is_file(folder)
        siblings = os.listdir(folder.parent) if folder.parent.is_dir() else []
        near = nearest(folder.name, siblings, cutoff=0.6)
        raise FileNotFoundError(
            f"{folder}: no such folder" + (f"; did you mean {near!r}?" if near else "")
        )
    found = [(split, _batches(file, query)) for split, each in files for file in each]
    return _data_set(written, table_splits.divide(found, query.split))


def _batches(file: pathlib.Path, query: table_splits.Query) -> tuple[list[Group], Any]:
    """As :func:`_row_groups`."""
    import pyarrow

    schema, batches = arrow_files.batches(file)
    columns = columns_of(file, schema, _OPTION, (query.image, query.texts))
    values = None
    if query.split:
        table_splits.check(file, query.split, schema.names)
        try:
            parts = [arrow_files.sound(batch.column(query.split)) for batch in batches]
        except ValueError as error:
            what = f"{file} is damaged in its column {query.split!r}"
            raise ValueError(f"{what}: {error}") from error
        values = pyarrow.chunked_array(parts or [[]]).combine_chunks()
    else:
        say_of_splits(file, schema.names)
    firsts = np.cumsum([0, *(batch.num_rows for batch in batches)])
    groups = [
        Group(file, columns, int(first), batch.num_rows, _Mapped(batch).read)
        for first, batch in zip(firsts, batches, strict=False)
        if batch.num_rows
    ]
    return groups, values


class _Mapped:
    """Rows of a file that is mapped into memory: they are checked before their first use.

    Args:
      batch: a ``pyarrow.RecordBatch``.
    """

    def __init__(self, batch: Any):
        self._batch = batch
        self._is_sound = False

    def read(self) -> Any:
        """The rows; raises ValueError if they are damaged."""
        if not self._is_sound:
            arrow_files.check(self._batch)
            self._is_sound = True
        return self._batch


def _data_set(name: str, groups: Mapping[str, Sequence[Group]]) -> DataSet:
    if not any(groups.values()):
        raise ValueError(f"{name} holds no rows")
    of_all = [group.columns for each in groups.values() for group in each]
    names = next((columns.class_names for columns in of_all if columns.class_names), None)
    names = names or _classes_of_folders(of_all)
    if any(columns.class_names not in (names, []) for columns in of_all):
        raise ValueError(f"{name}: its files have different class names")
    return DataSet(
        name,
        {split: sum(group.rows for group in each) for split, each in groups.items()},
        lambda split: TableSource(groups[split], names or []),
        class_names=names,
        has_texts=any(columns.text for columns in of_all),
    )


def _classes_of_folders(columns: Sequence[Columns]) -> list[str] | None:
    """Names of the classes that files are sorted into (``label=cat/``); None if they have none."""
    found = {each.given[each.label] for each in columns if each.label in each.given}
    return None if not found or all(map(str.isdecimal, found)) else sorted(found)


class TableSource(RecordSource):
    """Rows of groups, one group behind the other.

    Args:
      groups: where they are.
      class_names: of the labels.
    """

    def __init__(self, groups: Sequence[Group], class_names: Sequence[str]):
        self._groups = list(groups)
        self._starts = np.cumsum([0, *(group.rows for group in groups)])
        self._class_names = list(class_names)
        self._label_of = {name: number for number, name in enumerate(class_names)}
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._pictures: dict[str, Pictures | None] = {}
        self._lock = threading.Lock()
        self._locks = [threading.Lock() for _ in groups]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record | BadRecord:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, row = self._groups[number], index - int(self._starts[number])
        row = row if group.chosen is None else int(group.chosen[row])
        try:
            rows = self._read(number).slice(row, 1)
            item = next(parquet.items_of(rows, group.file, group.columns, group.first + row))
        except (OSError, ValueError, StopIteration) as error:
            if isinstance(error, OSError) and remote.is_remote(group.file):
                return BadRecord("unreachable", str(error))
            said = " ".join(str(error).split())
            return BadRecord("corrupted", f"{group.file}, row {group.first + row}: {said}")
        if isinstance(item, BadRecord):
            return item
        if isinstance(item.image, pathlib.Path) and not item.image.is_file():
            item = self._located(item, number)
        return self._record(item)

    def _located(self, item: Item, number: int) -> Item:
        """An item with its picture where that is, in another folder beside the table, say."""
        group = self._groups[number]
        if str(group.file) not in self._pictures:
            first = self._read(number).column(group.columns.image).slice(0, _NAMES).to_pylist()
            found = None if remote.is_remote(group.file) else pictures_named(first, group.file)
            self._pictures[str(group.file)] = found
        pictures = self._pictures[str(group.file)]
        if pictures is None or not isinstance(item.image, pathlib.Path):
            return item
        return dataclasses.replace(item, image=pictures.locate(item.image))

    def _record(self, item: Item) -> Record | BadRecord:
        texts, bad = decode_foreign_texts(item.texts)
        if isinstance(item.label, str):
            label = self._label_of.get(item.label, -1)
        else:
            label = -1 if item.label is None else item.label
        if not item.texts and isinstance(item.label, str):
            texts = (item.label,)  # the name of a class is a caption
        elif not item.texts and 0 <= label < len(self._class_names):
            texts = (self._class_names[label],)
        image = read_image(item.image)
        if isinstance(image, BadRecord):
            return dataclasses.replace(image, key=item.key)
        if not image:
            return BadRecord("zero_bytes", "", item.key)
        if not texts and label < 0:
            return BadRecord("bad_utf8" if bad else "empty_caption", "", item.key)
        meta = json.dumps(dict(item.meta), ensure_ascii=False) if item.meta else ""
        return Record(image, texts, label, item.key, meta)

    def _read(self, number: int) -> Any:
        """The rows of a group; read once, whoever needs them first."""
        with self._locks[number]:
            with self._lock:
                if number in self._kept:
                    self._kept.move_to_end(number)
                    return self._kept[number]
            rows = self._groups[number].read()
            with self._lock:
                self._kept[number] = rows
                if len(self._kept) > _KEPT_GROUPS:
                    self._kept.popitem(last=False)
        return rows
