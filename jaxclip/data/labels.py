"""The classes, or other numbers, of all records of a split, for orders that know them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable

import numpy as np

from jaxclip.data.column import Candidate
from jaxclip.data.dataset import DataSet
from jaxclip.data.record import Record
from jaxclip.data.tfrecord import load_sidecar, save_sidecar

_LOG = logging.getLogger(__name__)

# Below this, reading takes a moment, and a file beside the data would only be clutter.
_KEEP_FROM = 10_000


def read_labels(data_set: DataSet, split: str) -> np.ndarray:
    """Class of each record: int64[num_records], -1 for none and for records that can't be read.

    All records are read once, without decoding a picture. For a large TFDS directory the result is
    kept in it (``.labels.SPLIT.npz``) if it can be written to.
    """
    labels = _read(data_set, split, "labels", lambda record: max(-1, record.label), -1)
    return labels.astype(np.int64)


def read_numbers(data_set: DataSet, split: str, name: str) -> np.ndarray:
    """A number in each record's meta: float64[num_records].

    It is NaN where there is none, and 0 for records that can't be read. Read and kept as labels
    are (``.NAME.SPLIT.npz``).
    """

    def number(record: Record) -> float:
        value = Candidate(-1, record).meta.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return float("nan")

    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8]
    return _read(data_set, split, f"{safe}.{digest}", number, 0.0)


def _read(
    data_set: DataSet, split: str, file: str, number: Callable[[Record], float], missing: float
) -> np.ndarray:
    source = data_set.source(split)
    directory = data_set.directory
    sidecar, stamp = None, np.zeros(0, np.int64)
    if directory is not None and len(source) >= _KEEP_FROM:
        sidecar = directory / f".{file}.{split}.npz"
        stat = (directory / "dataset_info.json").stat()
        stamp = np.array([stat.st_size, stat.st_mtime_ns, len(source)], np.int64)
        loaded = load_sidecar(sidecar, stamp, ["labels"])
        if loaded is not None:
            return loaded[0]
        _LOG.info("reading %s of %d records of %s", file, len(source), data_set.name)
    found = np.full(len(source), missing, np.float64)
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, Record):
            found[index] = number(record)
    if sidecar is not None:
        save_sidecar(sidecar, stamp, {"labels": found})
    return found
