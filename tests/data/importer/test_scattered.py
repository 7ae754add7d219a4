"""Rows for the same picture that stand apart, and files whose records are called the same."""

import errno
import hashlib
import pathlib
import types

import pytest

from jaxclip.data.importer import scattered
from jaxclip.data.importer.items import names_apart


def gathered(table, times=None):
    """Rows are a picture's letter and a digit."""

    def rows():
        if times is not None:
            times.append(1)
        return table.split()

    return list(scattered.gathered(rows, lambda row: row[0].strip("-") or None, lambda row: row[0]))


def test_rows_stand_where_the_first_for_the_picture_stood():
    assert gathered("a1 a2 -3 b4 a5 -6 c7 b8 a9") == [
        ["a1", "a2", "a5", "a9"], ["-3"], ["b4", "b8"], [], ["-6"], ["c7"], [], [],
    ]  # fmt: skip


@pytest.mark.parametrize(("table", "count"), [("a1 a2 b3 -4", 2), ("a1 b2 a3", 3)])
def test_rows_are_read_no_more_than_is_needed(table, count):
    times = []
    gathered(table, times)
    assert len(times) == count


def test_pictures_with_the_same_hash_stay_apart(monkeypatch):
    same = types.SimpleNamespace(digest=lambda: bytes(8))
    monkeypatch.setattr(hashlib, "blake2b", lambda *_, **__: same)
    assert gathered("a1 b2 a3 c4") == [["a1", "a3"], ["b2"], ["c4"], [], [], []]


def test_a_table_that_grows_while_it_is_read():
    tables = iter(("a1 b2 a3", "a1 b2 a3 c4", "a1 b2 a3 c4"))
    found = scattered.gathered(lambda: next(tables).split(), lambda row: row[0], lambda row: row[0])
    assert list(found) == [["a1", "a3"], ["b2"], [], ["c4"]]


def test_rows_that_find_no_room_are_said_to_be_where_they_are(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scattered.pickle, "dump", full)
    monkeypatch.setattr(scattered.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=f"wait in TMPDIR: '{tmp_path}'") as caught:
        gathered("a1 b2 a3")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("files", "folders", "names"),
    [
        ("x/0.tar x/1.tar", 0, "0 1"),
        ("x/0.tar y/0.tar", 0, "x/0 y/0"),
        ("s/en/0.tar s/de/0.tar t/en/0.tar", 0, "s/en/0 s/de/0 t/en/0"),
        ("x/0.parquet x/1.parquet", 1, "x/0 x/1"),
        ("a=1/b=1/0.parquet a=2/b=1/0.parquet", 1, "a=1/b=1/0 a=2/b=1/0"),
        ("x/0.a.csv x/0.b.csv", 0, "0.a 0.b"),
        ("0.tar", 0, "0"),
        ("0.tar 0.tar", 0, "0 0"),
    ],
)
def test_names_that_tell_files_apart(files, folders, names):
    assert names_apart([pathlib.Path(each) for each in files.split()], folders) == names.split()
