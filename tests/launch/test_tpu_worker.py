"""launch/tpu_worker.sh: a training that outlives the connection that started it."""

import contextlib
import os
import shlex
import signal

import pytest

from tests.patience import until

SCRIPT = "launch/tpu_worker.sh"


@pytest.fixture
def worker(tools):
    """A worker whose training is a shell script; it is stopped at the end, come what may."""
    program = tools.root / ".venv" / "bin" / "jaxclip"
    program.parent.mkdir(parents=True)
    (tools.root / ".venv" / "pyvenv.cfg").touch()

    def training(code):
        program.write_text(f"#!/bin/bash\n{code}\n")
        program.chmod(0o755)

    tools.training = training
    training("trap 'exit 0' TERM; echo up; printf '<%s>' \"$@\"; echo; sleep 600 & wait")
    yield tools
    note = tools.home / ".jaxclip-run" / "pid"
    if note.exists():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(note.read_text()), signal.SIGKILL)


def status(worker):
    return worker.run(SCRIPT, "status")[0].strip()


def log(worker):
    return (worker.home / ".jaxclip-run" / "train.log").read_text()


def test_from_start_to_stop(worker, hostile):
    assert status(worker) == "never started"
    worker.run(SCRIPT, "run", "--config", "c", *hostile)
    until(lambda: "<train>" in log(worker))
    assert "".join(f"<{word}>" for word in ["train", "--config", "c", *hostile]) in log(worker)
    assert status(worker) == "running"
    assert "already running" in worker.run(SCRIPT, "run", "--config", "c", status=1)[1]
    worker.run(SCRIPT, "stop")
    assert status(worker) == "stopped"
    worker.run(SCRIPT, "stop")  # nothing left to stop
    worker.run(SCRIPT, "run", "--config", "c")
    assert status(worker) == "running"


@pytest.mark.parametrize("code", [0, 1, 143])
def test_the_status_of_a_training_that_ended(worker, code):
    worker.training(f"exit {code}")
    worker.run(SCRIPT, "run", "--config", "c")
    until(lambda: status(worker) == f"exited {code}")


def test_told_to_stop_by_the_machine_is_neither_finished_nor_stopped_by_hand(worker):
    worker.run(SCRIPT, "run", "--config", "c")
    until(lambda: "up" in log(worker))
    os.kill(int((worker.home / ".jaxclip-run" / "pid").read_text()), signal.SIGTERM)
    until(lambda: status(worker) == "exited 143")


def test_after_a_crash_of_the_machine(worker):
    worker.run(SCRIPT, "run", "--config", "c")
    until(lambda: "up" in log(worker))
    os.killpg(int((worker.home / ".jaxclip-run" / "pid").read_text()), signal.SIGKILL)
    until(lambda: status(worker) == "exited unknown")


def test_logs(worker):
    worker.training("echo one; echo two")
    worker.run(SCRIPT, "run", "--config", "c")
    until(lambda: status(worker) == "exited 0")
    process = worker.start(SCRIPT, "logs", "2")
    assert [process.stdout.readline() for _ in range(2)] == ["one\n", "two\n"]
    process.kill()
    process.communicate()


def test_mount(worker):
    worker.add("sudo", "gcsfuse", "mountpoint")
    worker.answer("^mountpoint", ("", 1))
    worker.run(SCRIPT, "mount", "gs://bucket")
    assert worker.lines[-1] == ["gcsfuse", "--implicit-dirs", "bucket", "/mnt/jaxclip"]
    worker.run(SCRIPT, "mount", "10.0.0.2:/share")
    expected = shlex.split("sudo mount -t nfs 10.0.0.2:/share /mnt/jaxclip")
    assert worker.lines[-1] == expected


def test_mount_once(worker):
    worker.add("sudo", "gcsfuse", "mountpoint")
    worker.run(SCRIPT, "mount", "gs://bucket")
    assert worker.lines == [["mountpoint", "-q", "/mnt/jaxclip"]]


def test_install_brings_a_python_where_there_is_none(worker):
    worker.environment["JAXCLIP_NO_UV"] = "0"
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14", "python"):
        worker.add_python(name, "3.10.12")
    worker.add("uv")
    new = worker.add_python("python", "3.12.8", into=worker.folder / "new")
    worker.answer("^uv python find", f"{new}\n")
    worker.answer("^uv venv", ("made", 9))  # far enough
    worker.run(SCRIPT, "install", "train,tpu", status=9)
    assert worker.lines[:2] == [
        ["uv", "python", "install", "3.12"],
        ["uv", "python", "find", "3.12"],
    ]
    assert worker.lines[2][:2] == ["uv", "venv"] and str(new) in worker.lines[2]


def test_unknown_command(worker):
    assert "unknown command 'dance'" in worker.run(SCRIPT, "dance", status=1)[1]
