"""Staging folders of runs of one address, of which one ends while another begins."""

import pytest

from jaxclip import lock
from jaxclip.train import staging, staging_folder
from jaxclip.train.staging_folder import StagingFolder

ADDRESS = "gs://bucket/run"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path))


@pytest.fixture
def second():
    """The second folder, which is removed when its run ends; the first one is taken."""
    first = StagingFolder(ADDRESS)
    folder = StagingFolder(ADDRESS)
    assert folder.path == staging.folder_of(ADDRESS, number=2)
    yield folder
    first.release()


def test_a_folder_is_removed_when_its_run_ends(second):
    second.release()
    assert not second.path.parent.exists()


def test_a_run_that_takes_the_folder_at_once_keeps_it(second, monkeypatch):
    """Between the end of the one's lock and its removal of the folder."""
    taken, release = [], lock.Lock.release

    def releasing(self):
        release(self)
        if not taken:
            taken.append(None)
            taken[0] = StagingFolder(ADDRESS)
            (taken[0].path / "config.json").write_text("{}")

    with monkeypatch.context() as patch:
        patch.setattr(lock.Lock, "release", releasing)
        second.release()
    assert taken[0].path == second.path
    assert (second.path / "config.json").exists()
    assert (second.path.parent / lock.FILE_NAME).exists()
    assert (second.path.parent / "address.txt").read_text() == f"{ADDRESS}\n"
    (second.path / "config.json").unlink()
    taken[0].release()
    assert not second.path.parent.exists()


@pytest.mark.parametrize("late", [False, True])
def test_a_folder_that_was_just_removed_is_made_again(second, monkeypatch, late):
    """Between the making of the folder and the taking of its lock."""
    take, ended = staging_folder._lock, []

    def taking(folder, hasty, stopped):
        if folder == second.path.parent and not ended:
            ended.append(None)
            if late:  # all but the last thing it does
                with monkeypatch.context() as patch:
                    patch.setattr(type(folder), "rmdir", lambda self: None)
                    second.release()
                assert folder.exists() and not second.path.exists()
            else:
                second.release()
                assert not folder.exists()
        return take(folder, hasty, stopped)

    monkeypatch.setattr(staging_folder, "_lock", taking)
    third = StagingFolder(ADDRESS)
    assert ended and third.path == second.path and third.path.is_dir()
    assert (third.path.parent / lock.FILE_NAME).exists()
    third.release()


def test_what_was_kept_aside_is_not_removed_with_the_folder(second):
    aside = second.path.with_name("run.left-20260101-000000")
    aside.mkdir()
    (aside / "metrics.jsonl").write_text("never uploaded")
    second.release()
    assert (aside / "metrics.jsonl").read_text() == "never uploaded"
    assert not second.path.exists()


def test_a_folder_whose_lock_was_lost_is_left_to_its_run(second):
    (second.path.parent / lock.FILE_NAME).unlink()
    taker = StagingFolder(ADDRESS)
    assert taker.path == second.path
    second.release()
    assert taker.path.exists()
    taker.release()


def test_a_place_that_is_not_there_is_said(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "link"))
    with pytest.raises(OSError):
        StagingFolder(ADDRESS)
