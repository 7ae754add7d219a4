"""Shards that are no files, or are removed or written anew while they are read."""

import io
import os
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from jaxclip.config_paths import absolute_data_name
from jaxclip.data import mixture, sources
from jaxclip.data.patterns import braces, expand
from jaxclip.data.record import BadRecord, Record
from jaxclip.data.tfrecord import FileCache


def picture(number):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def tar(path, numbers, size=0):
    """A tar of samples whose captions are their numbers, with so many bytes of blanks before."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in numbers:
            for ending, data in (("png", picture(number)), ("txt", b" " * size + b"%d" % number)):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def captions(source):
    return [r.texts[0] if isinstance(r, Record) else r.reason for r in source.read(range(4))]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_tar_that_is_written_anew_gives_no_pictures_with_the_captions_of_others(
    tmp_path, is_replaced
):
    path = tar(tmp_path / "0.tar", range(4))
    source = sources.open(f"webdataset:{path}").source("train")
    assert captions(source) == ["0", "1", "2", "3"]
    if is_replaced:
        os.replace(tar(tmp_path / "new.tar", range(10, 14), size=600), path)
        source._files.forget(str(path))  # as where there are many
    else:
        tar(path, range(10, 13), size=600)
    os.utime(path, ns=(1, 1))
    expected = ["10", "11", "12", "13"] if is_replaced else ["10", "11", "12", "corrupted"]
    assert captions(source) == expected


def test_a_tar_is_not_read_by_the_index_that_it_had_before(tmp_path, monkeypatch):
    path = tar(tmp_path / "0.tar", range(4))
    source = sources.open(f"webdataset:{path}").source("train")
    before, index = source._index(0), source._index
    tar(path, range(10, 14), size=600)
    os.utime(path, ns=(1, 1))
    assert captions(source)[0] == "10"
    # As in a thread that is held up between the two while another one indexes anew.
    held_up = iter([before])
    monkeypatch.setattr(source, "_index", lambda number: next(held_up, None) or index(number))
    assert captions(source) == ["10", "11", "12", "13"]


def test_a_tar_that_goes_away_is_counted_and_does_not_end_the_run(tmp_path):
    path = tar(tmp_path / "0.tar", range(4))
    source = sources.open(f"webdataset:{path}").source("train")
    path.unlink()
    assert captions(source) == ["unreachable"] * 4


def test_a_file_in_use_is_not_closed_by_those_who_open_others(tmp_path, monkeypatch):
    paths = [tar(tmp_path / f"{n}.tar", [n]) for n in range(3)]
    files = FileCache(limit=1)
    pread = os.pread

    def evict_first(*args):
        monkeypatch.setattr(os, "pread", pread)
        files.pread(str(paths[1]), 1, 0)
        return pread(*args)

    monkeypatch.setattr(os, "pread", evict_first)
    assert len(files.pread(str(paths[0]), 10, 0)) == 10


@pytest.mark.parametrize("columns", [{"picture": [b"x"] * 4}, {"image": [b"x"] * 2}])
def test_parquet_that_is_written_anew_is_counted(tmp_path, columns):
    path = parquet(tmp_path / "a.parquet", image=[picture(n) for n in range(4)], text=list("abcd"))
    source = sources.open(f"parquet:{path}").source("train")
    parquet(path, **columns)
    for record in source.read(range(4)):
        assert isinstance(record, BadRecord) and "changed since it was opened" in record.detail


@pytest.mark.timeout(10)  # the errors were waits without end
@pytest.mark.parametrize("kind", ["webdataset", "parquet", "arrow"])
def test_pipes_and_links_to_nothing_are_named(tmp_path, kind):
    ending = {"webdataset": "tar"}.get(kind, kind)
    os.mkfifo(tmp_path / f"a.{ending}")
    with pytest.raises(ValueError, match=rf"a\.{ending} is a pipe"):
        sources.open(f"{kind}:{tmp_path / f'a.{ending}'}")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink(tmp_path / "gone", folder / f"b.{ending}")
    with pytest.raises(FileNotFoundError, match=r"is a link to .*gone.*, which is not there"):
        sources.open(f"{kind}:{folder}")


def test_a_folder_that_may_not_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    tar(tmp_path / "train" / "0.tar", range(2))
    tar(tmp_path / "test" / "0.tar", range(2))
    scandir, access = os.scandir, os.access
    closed = str(tmp_path / "test")

    def refuse(path="."):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda p, mode: os.fspath(p) != closed and access(p, mode))
    for name in ("webdataset:{}", "parquet:{}", "webdataset:{}/test/1.tar"):
        with pytest.raises(PermissionError):
            sources.open(name.format(tmp_path))


def test_folders_that_are_called_like_files_are_not_read_as_such(tmp_path):
    spark = tmp_path / "set.parquet"
    spark.mkdir()
    parquet(spark / "part-0.parquet", image=[picture(0)], text=["a"])
    assert len(sources.open(f"parquet:{tmp_path}").source("train")) == 1
    with pytest.raises(ValueError, match="is a folder"):
        sources.open(f"parquet:{tmp_path}/*.parquet")


@pytest.mark.parametrize("name", ["", "webdataset:", "parquet: ", "tfds:", "scenes:"])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="names nothing to read"):
        sources.open(name)


def test_parquet_without_rows_is_said_to_be_that(tmp_path):
    path = parquet(tmp_path / "a.parquet", image=pyarrow.array([], pyarrow.binary()), text=[])
    with pytest.raises(ValueError, match="holds no rows"):
        sources.open(f"parquet:{path}")


def test_letters_of_patterns_that_were_meant_as_they_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PLACE", "/data")
    with pytest.raises(FileNotFoundError, match=r"\$PLACE is not filled in: write /data"):
        expand("$PLACE/0.tar")
    path = tar(tmp_path / "a[1]" / "0.tar", range(1))
    with pytest.raises(FileNotFoundError, match="stand for other letters: name the folder alone"):
        expand(f"{tmp_path}/a[1]/*.tar")
    assert expand(f"{path}::{path}") == [str(path)] * 2
    assert "named several times" in caplog.text
    assert list(braces("{a}{0..1}{b{c,d}}")) == ["{a}0{bc}", "{a}0{bd}", "{a}1{bc}", "{a}1{bd}"]


def test_colons_in_paths_are_no_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "10:30" / "0.tar", range(1))
    assert absolute_data_name("webdataset:10:30") == f"webdataset:{tmp_path}/10:30"
    assert absolute_data_name("10:30") == f"{tmp_path}/10:30"
    both = absolute_data_name("webdataset:a/0.tar::b/{0..1}.tar")
    assert both == f"webdataset:{tmp_path}/a/0.tar::{tmp_path}/b/{{0..1}}.tar"
    for same in ("webdataset:{/a,/b}/0.tar", "webdataset:file:/a/0.tar", "webdataset:s3://b/0.tar"):
        assert absolute_data_name(same) == same


@pytest.mark.parametrize(
    ("option", "said"),
    [({"split": 3}, "split=3 must be a text"), ({"languages": "en"}, "must be a list")],
)
def test_options_of_a_mixture_of_the_wrong_kind(tmp_path, option, said):
    name = f"webdataset:{tar(tmp_path / '0.tar', range(2))}"
    with pytest.raises(ValueError, match=said):
        mixture.parts([{"name": name, **option}], sources.open, "train")


def test_a_source_without_a_weight_beside_others_with_one_is_said(tmp_path, caplog):
    name = f"webdataset:{tar(tmp_path / '0.tar', range(30))}"
    mixture.parts([{"name": name}, {"name": name, "weight": 2}], sources.open, "train")
    assert "data.mixture[0] has no weight, so it counts as its 30 records" in caplog.text
    assert "93.8%" in caplog.text
    caplog.clear()
    mixture.parts([{"name": name}, {"name": name}], sources.open, "train")
    assert not caplog.text
