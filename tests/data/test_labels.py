"""The classes of a split, read once and kept beside large data sets."""

import dataclasses

import numpy as np
import pytest

from jaxclip.data import labels, sources
from jaxclip.data.record import Record


@pytest.fixture
def data_set(toys, tmp_path):
    records = [dataclasses.replace(r, label=i % 5 - 1) for i, r in enumerate(toys.records(12))]
    records[7] = Record(b"", ("no picture",), label=3)
    return sources.open(toys.write_data_set(tmp_path / "d", {"train": records}))


EXPECTED = [-1 if i == 7 else i % 5 - 1 for i in range(12)]


def test_labels_of_small_data_sets_leave_no_file(data_set):
    assert labels.read_labels(data_set, "train").tolist() == EXPECTED
    assert not list(data_set.directory.glob(".labels*"))


def test_labels_of_large_ones_are_kept_until_the_data_change(data_set, monkeypatch):
    monkeypatch.setattr(labels, "_KEEP_FROM", 10)
    assert labels.read_labels(data_set, "train").tolist() == EXPECTED
    kept = data_set.directory / ".labels.train.npz"
    assert kept.is_file()

    def refuse(self, index):
        raise AssertionError("read again")

    source = data_set.source("train")
    monkeypatch.setattr(type(source), "__getitem__", refuse)
    np.testing.assert_array_equal(labels.read_labels(data_set, "train"), EXPECTED)
    info = data_set.directory / "dataset_info.json"
    info.write_text(info.read_text() + " ")
    with pytest.raises(AssertionError, match="read again"):
        labels.read_labels(data_set, "train")
