"""Imports that are killed, run again, or asked to replace something."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import zipfile

import pytest

from jaxclip.data import sources
from jaxclip.data.importer import Options, import_records, job, output_folder
from tests.patience import until

pytest.importorskip("tensorflow_datasets")


def read(folder, split="train"):
    source = sources.open(folder).source(split)
    return [source[i] for i in range(len(source))]


def digests(folder):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(pathlib.Path(folder).iterdir())
        if file.name != "import.json"  # holds the time it took
    }


def test_the_same_import_again_does_nothing(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in")
    first = import_records(source, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    again = import_records(source, tmp_path / "out")
    assert again.was_done and dataclasses.replace(again, was_done=False) == first
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    assert "was imported before" in again.as_text()


def test_a_caption_that_stands_for_none_is_shown(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in")
    picture = next(source.glob("*.png"))
    (tmp_path / "x.csv").write_text(f"file,caption\nin/{picture.name},NA\n")
    with pytest.raises(ValueError, match="'NA' stands for no caption"):
        import_records(tmp_path / "x.csv", tmp_path / "out")


def test_another_import_is_refused_by_name_and_replaced_if_asked(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in")
    import_records(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match=r"min_side: 8 there, 9 now.*--overwrite"):
        import_records(source, tmp_path / "out", Options(min_side=9))
    toys.photo_folder(tmp_path / "in", count=4)
    with pytest.raises(FileExistsError, match="the files have changed since"):
        import_records(source, tmp_path / "out")
    assert import_records(source, tmp_path / "out", overwrite=True).splits == {"train": 4}
    assert len(read(tmp_path / "out")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_folder_of_something_else_is_never_touched(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="no data set"):
            import_records(source, tmp_path / "thesis", overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        import_records(source, tmp_path / "file")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert import_records(source, tmp_path / "empty").splits == {"train": 6}


class Stop(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("kind", ["csv", "txt", "tar", "parquet", "zip"])
def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(tmp_path, toys, kind, monkeypatch):
    count = 25
    source = tmp_path / "in"
    source.mkdir()
    if kind == "csv":
        toys.photo_folder(source, count, rows=[["gone.png", "a"], ["3.png", "again"]])
    elif kind == "txt":
        for i in range(count):
            (source / f"{i:02d}.png").write_bytes(toys.picture(i))
            (source / f"{i:02d}.txt").write_text("" if i % 7 == 3 else f"thing {i}")
    elif kind == "zip":
        with zipfile.ZipFile(source / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(count):
                archive.writestr(f"{i:02d}.png", toys.picture(i) if i != 4 else b"torn")
                archive.writestr(f"{i:02d}.txt", "" if i % 7 == 3 else f"thing {i}")
        (source / "b.zip").write_bytes(b"PK")
    elif kind == "tar":
        for t in range(3):
            toys.make_tar(source / f"{t}.tar", [(f"{t}-{i}.{e}", d) for i in range(8) for e, d in
                     (("png", toys.picture(i)), ("txt", b"" if i == 2 else b"thing"))])  # fmt: skip
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        for t in range(2):
            pq.write_table(
                pa.table({"image": [toys.picture(i) for i in range(12)],
                          "text": ["" if i == 2 else f"thing {i}" for i in range(12)]}),
                source / f"{t}.parquet", row_group_size=5,
            )  # fmt: skip
    options = Options(name="toy", val_fraction=0.3)
    original = job.Store
    monkeypatch.setattr(job, "Store", lambda folder, request, size: original(folder, request, 2000))
    import_records(source, tmp_path / "whole", options)
    taken = job._take

    for stop_after in (1, 7, 8, 1, 3):
        done = 0

        def take(*arguments, limit=stop_after):
            nonlocal done
            if done == limit:
                raise Stop
            done += 1
            taken(*arguments)

        monkeypatch.setattr(job, "_take", take)
        with pytest.raises(Stop):
            import_records(source, tmp_path / "out", options, num_threads=2, commit_seconds=0)
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(job, "_take", taken)
    import_records(source, tmp_path / "out", options)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_uncommitted_work_is_done_again(tmp_path, toys, monkeypatch):
    source = toys.photo_folder(tmp_path / "in", 20)
    import_records(source, tmp_path / "whole", Options(name="toy"))
    commit, commits = job.Store.commit, []

    def commit_or_die(store):
        if len(commits) == 9:
            raise Stop
        commits.append(1)
        commit(store)

    monkeypatch.setattr(job.Store, "commit", commit_or_die)
    with pytest.raises(Stop):
        import_records(source, tmp_path / "out", Options(name="toy"), commit_seconds=0)
    monkeypatch.undo()
    unfinished = tmp_path / "out.importing"
    with open(unfinished / "shard-00000.part", "ab") as file:
        file.write(b"half a record that was never committed")
    (unfinished / "shard-00007.part").write_bytes(b"a shard that was never committed")
    import_records(source, tmp_path / "out", Options(name="toy"))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_killed_while_finishing_it_still_finishes(tmp_path, toys, monkeypatch):
    source = toys.photo_folder(tmp_path / "in", 8)
    import_records(source, tmp_path / "whole", Options(name="toy"))
    for module, name in ((job, "_write_metadata"), (output_folder, "move")):
        monkeypatch.setattr(module, name, lambda *args: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            import_records(source, tmp_path / "out", Options(name="toy"))
        assert not (tmp_path / "out").exists()
        monkeypatch.undo()
    import_records(source, tmp_path / "out", Options(name="toy"))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_killed_for_real(tmp_path, toys):
    source = toys.photo_folder(tmp_path / "in", 300)
    import_records(source, tmp_path / "whole", Options(name="toy"))
    # It is killed before it has all, however long that takes.
    code = (
        "import itertools, sys, time; from jaxclip.data.importer import Options, job\n"
        "take, count = job._take, itertools.count()\n"
        "job._take = lambda *all: time.sleep(1e4 if next(count) == 290 else 0) or take(*all)\n"
        "job.import_records(sys.argv[1], sys.argv[2], Options(name='toy'), commit_seconds=0)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(tmp_path / "out")],
        cwd=pathlib.Path(__file__).parents[3],
    )
    state = tmp_path / "out.importing" / "shard-00000.part"
    until(lambda: process.poll() or (state.exists() and state.stat().st_size > 2000))
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists() and state.exists()
    import_records(source, tmp_path / "out", Options(name="toy"))
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_unfinished_imports_are_not_mixed(tmp_path, toys, monkeypatch):
    source = toys.photo_folder(tmp_path / "in")
    monkeypatch.setattr(output_folder, "move", lambda *args: (_ for _ in ()).throw(Stop()))
    with pytest.raises(Stop):
        import_records(source, tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="unfinished import of something else"):
        import_records(source, tmp_path / "out", Options(val_fraction=0.5))
    summary = import_records(source, tmp_path / "out", Options(val_fraction=0.5), overwrite=True)
    assert sum(summary.splits.values()) == 6


def test_two_at_once_are_refused(tmp_path, toys, monkeypatch):
    import sqlite3

    source = toys.photo_folder(tmp_path / "in")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.1}))
    taken = job._take

    def take(*arguments):
        with pytest.raises(OSError, match="in use by another import"):
            import_records(source, tmp_path / "out")
        monkeypatch.setattr(job, "_take", taken)
        taken(*arguments)

    monkeypatch.setattr(job, "_take", take)
    assert import_records(source, tmp_path / "out").splits == {"train": 6}


@pytest.mark.parametrize(
    "full", [OSError(errno.ENOSPC, "No space left"), sqlite3.OperationalError("disk is full")]
)
def test_a_full_disk_is_said_and_the_import_goes_on(tmp_path, toys, monkeypatch, full):
    source = toys.photo_folder(tmp_path / "in")

    def flush(self):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(job.Store, "flush", flush)
        with pytest.raises(OSError, match=r"no room for .*out.importing.*the same command goes on"):
            import_records(source, tmp_path / "out")
    assert import_records(source, tmp_path / "out").splits == {"train": 6}
