"""What a curation kept, read from its workdir: records with their weights, and captions.

``jaxclip curate`` leaves two folders of tables there: ``kept`` with the columns ``index``,
``captions`` (numbers of those that are left) and ``weight``, and ``dropped`` with ``index``. So
training can read the source as it lies there, and nothing is copied.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from jaxclip.data.dataset import RecordSource
from jaxclip.data.naming import CAPTION_TAGS
from jaxclip.data.record import BadRecord, Record, meta_object


def weights(folder: pathlib.Path, count: int) -> np.ndarray:
    """How often each of ``count`` records comes: float64[count], 0 for those that were dropped.

    Raises:
      ValueError: no such workdir, a damaged one, or one of other data.
    """
    found = np.full(count, np.nan)
    for table in _tables(folder / "dropped", "index"):
        found[_rows_of(table, count)] = 0.0
    for table in _tables(folder / "kept", "index", "weight"):
        weight = table.column("weight").to_numpy() if "weight" in table.column_names else 1.0
        found[_rows_of(table, count)] = weight
    unknown = int(np.isnan(found).sum())
    if unknown:
        raise ValueError(
            f"{folder} says nothing of {unknown} of the split's {count} records: it is a curation "
            "of other data"
        )
    return found


def captions(folder: pathlib.Path, count: int) -> np.ndarray:
    """Which captions are left of each record: uint8[count, w], a bit for each of w * 8 captions.

    Records that were dropped have none; without a column of captions all are left, for w = 0.

    Raises:
      ValueError: as :func:`weights`.
    """
    bits = np.zeros((count, 0), np.uint8)
    for table in _tables(folder / "kept", "index", "captions"):
        if "captions" not in table.column_names:
            continue
        lists = table.column("captions").combine_chunks()
        rows = np.repeat(_rows_of(table, count), np.diff(lists.offsets.to_numpy()))
        numbers = lists.flatten().to_numpy()
        width = int(numbers.max(initial=-1)) // 8 + 1
        bits = np.pad(bits, ((0, 0), (0, max(0, width - bits.shape[1]))))
        np.bitwise_or.at(bits, (rows, numbers // 8), np.uint8(1) << (numbers % 8).astype(np.uint8))
    return bits


def narrowed(source: RecordSource, folder: pathlib.Path) -> RecordSource:
    """Records with those captions that a curation kept; no record is left out.

    Raises:
      ValueError: as :func:`weights`.
    """
    bits = captions(folder, len(source))
    return _Kept(source, bits) if bits.shape[1] else source


class _Kept(RecordSource):
    """Records with some of their captions."""

    def __init__(self, source: RecordSource, bits: np.ndarray):
        self._source = source
        self._bits = bits

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record | BadRecord:
        record = self._source[index]
        if isinstance(record, BadRecord):
            return record
        left = np.flatnonzero(np.unpackbits(self._bits[index], bitorder="little"))
        numbers = [number for number in left.tolist() if number < len(record.texts)]
        if len(numbers) == len(record.texts):
            return record
        texts = tuple(record.texts[number] for number in numbers)
        meta = _with_tags(record.meta, len(record.texts), numbers)
        return dataclasses.replace(record, texts=texts, meta=meta)

    def picture(self, index: int) -> Record | BadRecord:
        return self._source.picture(index)


def _with_tags(meta: str, count: int, numbers: list[int]) -> str:
    """A record's meta with the tags of some of its captions: they are in the captions' order."""
    tags = meta_object(meta).get(CAPTION_TAGS) if CAPTION_TAGS in meta else None
    if not isinstance(tags, list) or len(tags) != count:
        return meta
    return json.dumps({**meta_object(meta), CAPTION_TAGS: [tags[number] for number in numbers]})


def _tables(folder: pathlib.Path, *columns: str) -> list[Any]:
    """Those of the columns that there are, of each table in a folder."""
    import pyarrow
    import pyarrow.parquet

    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: its parent is no workdir of a finished curation")
    try:
        found = []
        for file in sorted(folder.glob("*.parquet")):
            with pyarrow.parquet.ParquetFile(file) as table:
                names = set(table.schema_arrow.names) & set(columns)
                found.append(table.read(columns=sorted(names)))
        return found
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def _rows_of(table: Any, count: int) -> np.ndarray:
    rows = table.column("index").to_numpy()
    if len(rows) and not (rows.min() >= 0 and rows.max() < count):
        raise ValueError(
            f"the curation has record {rows.max()}, the split {count} records: it is a curation "
            "of other data"
        )
    return np.asarray(rows, np.int64)
