"""The folder of a run: found from anywhere, held by one, claimed by a first step, extended."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxclip import cli
from jaxclip import config as config_lib
from jaxclip.lock import FILE_NAME, Holder, LockedError, _encode
from jaxclip.train import checkpoint, loop, metrics, setup, step_metrics, workdir, workdir_config
from tests.patience import LONG


@pytest.fixture(autouse=True)
def cached(compilation_cache):
    with compilation_cache():
        yield


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of the finished run, and its parent as the current folder."""
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def newest(config, folder):
    with checkpoint.Checkpointer(folder / "checkpoints", writable=False) as checkpointer:
        restored = checkpointer.restore_latest(setup.build(config).abstract_state)
    return jax.tree.map(np.asarray, restored.state)


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("jaxclip: error: ") and error.count("\n") == 1, error
    return error


# Paths.


def test_every_command_takes_a_relative_path(copy, tiny_config_file, capsys):
    assert cli.main(["eval", "--workdir", "run"]) == 0
    assert "checkpoint of step 20" in capsys.readouterr().out
    assert cli.main(["report", "--workdir", "./run"]) == 0
    assert cli.main(["train", "--workdir", "run/../run"]) == 0
    assert "going on after step 20" in capsys.readouterr().out
    config = os.path.relpath(tiny_config_file)
    plan = ["plan", "--config", config, "--no_measure", "--output", "plan", "--cache", "cache"]
    assert cli.main(plan) == 0
    assert (copy.parent / "plan" / "plan.json").exists() and any((copy.parent / "cache").iterdir())


def test_what_takes_no_address_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lab = ["lab", "--config", "configs/lab_rules.py", "--workdir", "gs://bucket/run"]
    assert cli.main(lab) == 2
    assert "mount the bucket (`gcsfuse`" in one_line(capsys)
    for address, what in {
        "https://bucket/run": "can be written to",
        "gs://": "write 'gs://",
    }.items():
        with pytest.raises(ValueError, match=what), workdir.hold(address):
            pass
    assert not list(tmp_path.iterdir())


def test_a_home_folder_is_filled_in(copy, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert cli.main(["report", "--workdir=~/run"]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")


def test_paths_of_a_configuration_hold_from_any_folder(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_dataset.parent)
    given = [
        f"data.name={tiny_dataset.name}",
        "tokenizer.path=words.json",
        "compilation_cache_dir=~/cache",
    ]
    config = config_lib.resolve({}, given)
    monkeypatch.chdir(tmp_path)
    assert config["data"]["name"] == str(tiny_dataset)
    assert config["tokenizer"]["path"] == str(tiny_dataset.parent / "words.json")
    assert config["compilation_cache_dir"] == os.path.expanduser("~/cache")
    # What an earlier version saved as it was given is the same run.
    monkeypatch.chdir(tiny_dataset.parent)
    old = json.loads(json.dumps(config))
    old["data"]["name"] = tiny_dataset.name
    assert config_lib.changes(old, config) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("emoji", "emoji"),
        ("emojis", "emojis"),
        ("webdataset:a/{0..9}.tar", "webdataset:{here}/a/{0..9}.tar"),
        ("webdataset:/a/{0..9}.tar", "webdataset:/a/{0..9}.tar"),
        ("webdataset:gs://a/{0..9}.tar", "webdataset:gs://a/{0..9}.tar"),
        ("gs://a/b", "gs://a/b"),
        ("http://a:80/b", "http://a:80/b"),
        ("webdataset:https://a:80/b.tar", "webdataset:https://a:80/b.tar"),
    ],
)
def test_names_of_data_sets(name, expected, tmp_path, monkeypatch):
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config_lib.absolute_data_name(name) == expected.replace("{here}", str(tmp_path))


def test_no_message_advises_to_remove_what_may_be_whole(copy, capsys):
    (copy / "config.json").write_text("{")
    for manifest in copy.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{")
    assert cli.main(["eval", "--workdir", "run"]) == 2
    message = one_line(capsys)
    assert "is not valid JSON" in message and "bring back a copy" in message
    shutil.copy(copy.parent / "run" / "environment.json", copy / "config.json")
    shutil.rmtree(copy / "checkpoints" / "step_00000010")
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.Checkpointer(copy / "checkpoints").restore_latest({})
    for advice in ("remove", "delete"):
        assert advice not in str(error.value) + message


def test_whole_checkpoints_that_can_not_be_read_are_not_called_damaged(copy, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(checkpoint.state_io, "restore", fail)
    reader = checkpoint.Checkpointer(copy / "checkpoints", writable=False)
    with reader, pytest.raises(checkpoint.CheckpointError) as error:
        reader.restore_latest({"step": np.int32(0)}, partial=True)
    assert "its checksums are right, but RuntimeError: no memory" in str(error.value)
    assert "every checkpoint" not in str(error.value)


def test_a_lost_configuration_is_found_in_the_newest_checkpoint(copy, tiny_config, capsys):
    (copy / "config.json").write_text("{")
    assert workdir_config.read_config(copy) == tiny_config()
    (copy / "config.json").unlink()
    assert cli.main(["report", "--workdir", "run"]) == 0
    # And it still is this run's workdir.
    with pytest.raises(workdir.WorkdirError, match="seed: 0 -> 5"):
        workdir_config.check_config(tiny_config("seed=5"), copy)


# The lock.


def test_a_second_train_is_refused_and_the_first_is_not_harmed(
    trained, tiny_config, tiny_config_file, tmp_path, monkeypatch, capsys
):
    """The second comes while the first is writing a checkpoint, which its clean-up once removed."""
    begun = checkpoint.Checkpointer.save
    argv = ["train", "--config", str(tiny_config_file), "--workdir", str(tmp_path / "run")]
    messages = []

    def save(self, step, *args, **kwargs):
        done = begun(self, step, *args, **kwargs)
        if step == 10 and not messages:
            capsys.readouterr()
            assert cli.main(argv) == 2
            messages.append(one_line(capsys))
        return done

    monkeypatch.setattr(checkpoint.Checkpointer, "save", save)
    assert loop.train(tiny_config(), tmp_path / "run").finished
    holder = Holder.this_process()
    assert f"in use by process {holder.pid} on host {holder.host}" in messages[0]
    jax.tree.map(
        np.testing.assert_array_equal,
        newest(tiny_config(), tmp_path / "run"),
        newest(tiny_config(), trained),
    )
    assert not (tmp_path / "run" / FILE_NAME).exists()


def test_the_lock_comes_before_anything_is_written(copy, tiny_config):
    (copy / FILE_NAME).write_bytes(_encode(Holder.this_process()))
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(LockedError):
        loop.train(tiny_config(), copy)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()} == before


def test_an_error_lets_the_workdir_go(tiny_config, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(loop, "first_state", fail)
    with pytest.raises(RuntimeError, match="boom"):
        loop.train(tiny_config(), tmp_path)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_run_whose_workdir_was_taken_over_stops_without_a_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    flush = step_metrics.StepMetrics.flush

    def taken(self, *args):
        self.held.lock._lost = len(list((tmp_path / "checkpoints").glob("step_*"))) > 0
        return flush(self, *args)

    monkeypatch.setattr(step_metrics.StepMetrics, "flush", taken)
    with pytest.raises(Exception, match="was taken over"):
        loop.train(tiny_config("evaluate.every_steps=0"), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]


# Whose workdir it is.


def test_a_run_that_fails_before_its_first_step_leaves_the_workdir_free(
    tiny_config, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("the compiler gave up")

    with monkeypatch.context() as broken:
        broken.setattr(loop, "first_state", fail)
        with pytest.raises(RuntimeError):
            loop.train(tiny_config("seed=3"), tmp_path)
    assert workdir_config.find_config(tmp_path) is None
    assert loop.train(tiny_config(), tmp_path).finished
    assert workdir_config.read_config(tmp_path) == tiny_config()


# More steps, another rate.


def test_the_refusal_names_the_ways_on(copy, tiny_config_file, capsys):
    argv = ["train", "--config", str(tiny_config_file), "--workdir", "run"]
    assert cli.main([*argv, "--config.total_steps=25"]) == 2
    error = capsys.readouterr().err
    assert "total_steps: 20 -> 25" in error and "--extend goes on" in error
    assert f"--config.init_from={copy}" in error and "use another --workdir" in error
    assert cli.main([*argv, "--extend", "--config.total_steps=25", "--config.seed=2"]) == 2
    assert "--extend does not change seed" in capsys.readouterr().err
    assert cli.main([*argv, "--extend", "--config.total_steps=15"]) == 2
    assert "total_steps=15, but 20 steps are done already" in one_line(capsys)
    assert cli.main([*argv, "--extend", "--config.optim.learning_rate=0.01"]) == 2
    assert "total_steps=20, but 20 steps are done already" in one_line(capsys)
    assert workdir_config.read_config(copy)["total_steps"] == 20


def test_extended_is_what_one_long_run_is_and_the_change_is_noted(
    tiny_config, tmp_path, capsys, compilation_cache
):
    """With a constant rate, 6 steps and then 4 more are bit for bit the 10 of one run."""
    common = ("optim.schedule.name=constant", "evaluate.every_steps=0", "checkpoint.every_steps=0")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    long = tiny_config("total_steps=10", *common)
    assert loop.train(long, whole).finished
    assert loop.train(tiny_config("total_steps=6", *common), parts).finished
    with pytest.raises(workdir.WorkdirError, match="total_steps: 6 -> 10"):
        loop.train(long, parts)
    assert cli.main(["train", "--workdir", str(parts), "--extend", "--config.total_steps=10"]) == 0
    jax.tree.map(np.testing.assert_array_equal, newest(long, parts), newest(long, whole))
    assert workdir_config.read_config(parts) == long
    assert workdir_config.read_history(parts) == [{"step": 6, "changes": {"total_steps": [6, 10]}}]
    steps, _ = metrics.curves(metrics.read_metrics(parts))["loss"]
    assert steps.tolist() == list(range(1, 11))
    assert "after step 6: total_steps 6 → 10" in (parts / "report.html").read_text()
    # From now on it is a run like any other.
    capsys.readouterr()
    assert cli.main(["train", "--workdir", str(parts)]) == 0
    assert "going on after step 10 of 10" in capsys.readouterr().out
    assert len(workdir_config.read_history(parts)) == 1


def test_an_extension_that_the_state_does_not_fit_changes_nothing(copy, tiny_config):
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match="belongs to another model or optimizer"):
        loop.train(tiny_config("optim.name=lion", "total_steps=22"), copy, extend=True)
    assert (copy / "config.json").read_bytes() == before
    assert len(list((copy / "checkpoints").glob("step_*"))) == 2


# Disks.


@pytest.fixture
def small_disk(tmp_path):
    """``mount(kilobytes) -> folder``: a file system of that size."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small file system here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_from_the_start_is_one_line(
    small_disk, tiny_config_file, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "first_state", lambda *_: pytest.fail("the training began"))
    disk = small_disk(64)
    (disk / "filler").write_bytes(b"x" * 64 * 1024)
    argv = ["train", "--config", str(tiny_config_file), "--workdir", str(disk / "run")]
    assert cli.main(argv) == 2
    assert "can't be written (No space left on device)" in one_line(capsys)


@pytest.mark.parametrize("writer", ["report", "eval", "metrics"])
def test_every_writer_says_in_one_line_that_the_disk_is_full(writer, trained, small_disk, capsys):
    disk = small_disk(8000)
    shutil.copytree(trained, disk / "run", ignore=shutil.ignore_patterns("tensorboard"))
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * (room.f_bavail * room.f_bsize))
    if writer == "report":
        assert cli.main(["report", "--workdir", str(disk / "run")]) == 1
        assert "report.html can't be written: no space left on the device" in one_line(capsys)
    elif writer == "eval":
        capsys.readouterr()
        assert cli.main(["eval", "--workdir", str(disk / "run")]) == 0
        out, error = capsys.readouterr()
        assert "test/zero_shot/top1" in out, "the results are printed all the same"
        assert "Traceback" not in error
    else:
        with (
            pytest.raises(metrics.MetricsError, match="no space left on the device"),
            metrics.MetricWriter(disk / "run", ["jsonl"]) as writing,
        ):
            for step in range(100):
                writing.write(step, {"loss": 1.0})


def test_a_read_only_workdir_is_evaluated_and_refused_for_training(
    trained, tiny_config_file, small_disk, capsys
):
    disk = small_disk(8000)
    shutil.copytree(trained, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert cli.main(["eval", "--workdir", str(disk / "run")]) == 0
    assert "test/zero_shot/top1" in capsys.readouterr().out
    assert cli.main(["report", "--workdir", str(disk / "run")]) == 1
    assert "the file system is read-only" in one_line(capsys)
    argv = ["train", "--config", str(tiny_config_file), "--workdir", str(disk / "run")]
    assert cli.main(argv) == 2
    assert "can't be written (Read-only file system)" in one_line(capsys)


def test_events_on_a_full_disk_say_so_and_the_run_ends(small_disk):
    """TensorBoard's events are written by a thread, whose error must reach us all the same."""
    disk = small_disk(64)
    code = (
        "import sys, time; from jaxclip.train import metrics\n"
        "with metrics.MetricWriter(sys.argv[1]) as writer:\n"
        "  for step in range(3000): writer.write(step, {f'x{i}': 1.0 for i in range(5)})\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, disk / "run"], capture_output=True, text=True, timeout=LONG
    )
    assert run.returncode == 1
    assert "MetricsError: " in run.stderr.strip().splitlines()[-1]


def test_a_configuration_of_another_program_or_version_is_named(tmp_path, tiny_config, capsys):
    """As that of published weights, or one that was edited."""
    file = tmp_path / "config.json"
    for content, message in (
        ({"architectures": ["CLIPModel"], "vocab": 1}, "config.json is of another program (it has"),
        ({**tiny_config(), "total_steps": "6"}, "config.json: config key 'total_steps' wants int"),
        ({**tiny_config(), "new_key": 1}, "config.json: unknown config key 'new_key'"),
    ):
        file.write_text(json.dumps(content))
        for command in ("eval", "train", "report"):
            if command == "report" and "new_key" in content:
                continue  # which draws what it knows
            assert cli.main([command, "--workdir", str(tmp_path)]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1, (command, error)


def test_an_override_may_mend_the_configuration_of_a_workdir(tiny_config):
    wrong = {**tiny_config(), "ema_decay": 1.0}
    assert workdir_config.complete(wrong, "run", ["ema_decay=0.9"])["ema_decay"] == 0.9
    for overrides in ([], ["total_steps=7"], ["no_such_key=1"]):
        with pytest.raises(workdir.WorkdirError, match=r"config\.json: ema_decay=1.0 .* edited"):
            workdir_config.complete(wrong, "run", overrides)
    with pytest.raises(ValueError, match=r"\Aunknown config key 'no_such_key'"):
        workdir_config.complete(tiny_config(), "run", ["no_such_key=1"])
