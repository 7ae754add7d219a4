"""A start whose other processes do not come: what is said, when, and how it ends."""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import types

import pytest

from jaxclip.parallel import waiting
from tests.patience import LONG, until

HOST = socket.gethostname()


@pytest.fixture
def port():
    """A port that somebody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def watch_ends():
    until(lambda: not [each for each in threading.enumerate() if each.name == "start_watch"])


def who(monkeypatch, *found):
    monkeypatch.setattr(waiting, "_who", lambda: found)


def test_what_a_process_waits_for(monkeypatch, port):
    who(monkeypatch, "", 0, 0)
    assert waiting._situation() == (
        f"a process on {HOST} has not found the others yet: see whether each was started, or ended "
        "with an error of its own", True,
    )  # fmt: skip
    who(monkeypatch, f"127.0.0.1:{port}", 2, 3)
    what, again = waiting._situation()
    assert what.startswith(f"process 2 of 3 on {HOST} has reached process 0 at 127.0.0.1:{port}")
    assert not again
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens there
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        who(monkeypatch, address, 2, 3)
        what, again = waiting._situation()
    assert f"can't reach process 0 at {address} (Connection refused): see" in what and again


@pytest.mark.skipif(not waiting._TABLES[0].exists(), reason="no list of connections here")
def test_process_0_counts_who_is_there(monkeypatch, port):
    who(monkeypatch, f"127.0.0.1:{port}", 0, 3)
    assert "not all are there" in waiting._situation()[0]
    with contextlib.ExitStack() as stack:
        for count in (1, 2):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            what, again = waiting._situation()
            assert f"process 0 of 3 on {HOST} waits for the others at" in what and again
            assert f"{count} of 3 are there" in what
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert "not all are there" in waiting._situation()[0]  # all have come, to begin with


def test_it_is_said_in_time_and_then_ended_by_one_line(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "_FIRST", 0.02)
    monkeypatch.setattr(waiting, "_AGAIN", 0.05)
    monkeypatch.setattr(waiting, "_situation", lambda: ("nobody comes", True))
    # Each look at the clock is a second after the last one.
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(waiting, "time", clock)
    ended, left = threading.Event(), threading.Event()

    def end(status):
        assert status == 1
        ended.set()
        left.wait(LONG)

    monkeypatch.setattr(waiting.os, "_exit", end)
    with waiting.told({"initialization_timeout": 3}, "a hint") as longer:
        assert longer["initialization_timeout"] > 20
        assert ended.wait(LONG)
    left.set()
    watch_ends()
    assert capsys.readouterr().err.splitlines() == [
        "jaxclip: nobody comes (a hint); waiting for 2 s more",
        "jaxclip: nobody comes (a hint); waiting for 1 s more",
        "jaxclip: error: nobody comes (a hint); gave up after 3 s "
        "(distributed.initialization_timeout_seconds)",
    ]


def test_a_start_that_does_not_wait_says_nothing(monkeypatch, capsys):
    asked, left = threading.Event(), threading.Event()

    def situation():
        asked.set()
        assert left.wait(LONG)
        return "late", True

    monkeypatch.setattr(waiting, "_FIRST", 0.01)
    monkeypatch.setattr(waiting, "_situation", situation)
    before = signal.getsignal(signal.SIGINT)
    with waiting.told({"initialization_timeout": 300}, ""):
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert asked.wait(LONG)
    left.set()
    watch_ends()
    assert capsys.readouterr().err == "" and signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_slurm_step_of_which_one_task_came(tmp_path):
    """As ``srun`` sets it; Ctrl-C ends the wait, too."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }  # fmt: skip
    # JAX has found out by then who is there, however long that takes; then time passes by seconds.
    program = (
        "import itertools, time, types\n"
        "from jaxclip import parallel\nfrom jaxclip.parallel import waiting\n"
        "look, waiting._FIRST = waiting._situation, 0.1\n"
        "def situation():\n"
        "    while 'are there' not in look()[0] or 'not all' in look()[0]: time.sleep(0.1)\n"
        "    return look()\n"
        "waiting._situation = situation\n"
        "waiting.time = types.SimpleNamespace(monotonic=itertools.count().__next__)\n"
        "parallel.initialize_distributed(initialization_timeout_seconds={})"
    )

    def start(limit):
        return subprocess.Popen(
            [sys.executable, "-c", program.format(limit)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with start(2) as child:
        err = child.communicate(timeout=LONG)[1]
    assert child.returncode == 1
    first, last = err.splitlines()
    assert re.match(r"jaxclip: process 0 of 2 on \S+ waits for the others at localhost:", first)
    assert "1 of 2 are there" in first and "SLURM_NTASKS=2; unset it for one" in first
    assert "gave up after 2 s" in last and last.startswith("jaxclip: error: ")
    with start(300) as child:
        assert "waits" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(LONG) == -signal.SIGINT
