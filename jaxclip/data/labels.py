"""The classes of all records of a split, for orders that know them."""

from __future__ import annotations

import logging

import numpy as np

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
    source = data_set.source(split)
    directory = data_set.directory
    sidecar, stamp = None, np.zeros(0, np.int64)
    if directory is not None and len(source) >= _KEEP_FROM:
        sidecar = directory / f".labels.{split}.npz"
        stat = (directory / "dataset_info.json").stat()
        stamp = np.array([stat.st_size, stat.st_mtime_ns, len(source)], np.int64)
        loaded = load_sidecar(sidecar, stamp, ["labels"])
        if loaded is not None:
            return loaded[0]
        _LOG.info("reading the labels of %d records of %s", len(source), data_set.name)
    labels = np.full(len(source), -1, np.int64)
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, Record):
            labels[index] = max(-1, record.label)
    if sidecar is not None:
        save_sidecar(sidecar, stamp, {"labels": labels})
    return labels
