"""Batches made ahead: in order, with their errors, and never in the way of the program's end."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxclip.data.ahead import Ahead, Closed
from tests.patience import LONG, until


def test_values_come_in_order_whatever_their_threads_do():
    def make(step):
        time.sleep(0.01 * (step % 3 == 0))
        return step * step

    ahead = Ahead(make, 5, num_threads=3, depth=2)
    assert [ahead.take(step) for step in range(5, 25)] == [s * s for s in range(5, 25)]
    ahead.close()


def test_so_many_are_made_ahead_and_no_more():
    made = []
    ahead = Ahead(made.append, 0, num_threads=1, depth=2)
    ahead.take(0)
    until(lambda: len(made) >= 4)
    time.sleep(0.05)  # for one too many to come
    assert made == [0, 1, 2, 3]
    ahead.close()


def test_an_error_belongs_to_its_step():
    def make(step):
        if step == 2:
            raise KeyError("two")
        return step

    ahead = Ahead(make, 0)
    assert [ahead.take(0), ahead.take(1)] == [0, 1] and ahead.error is None
    with pytest.raises(KeyError, match="two"):
        ahead.take(2)
    assert isinstance(ahead.error, KeyError)
    assert ahead.take(3) == 3 and ahead.error is None
    ahead.close()


def test_closing_waits_for_nobody():
    release, made = threading.Event(), []

    def make(step):
        if step:
            release.wait(LONG)
            made.append(step)
        return step

    ahead = Ahead(make, 0)
    assert ahead.take(0) == 0
    ahead.close()
    assert not made
    release.set()
    with pytest.raises(Closed):
        ahead.take(1)


# --- the end of a program -----------------------------------------------------------------------

_PROGRAM = """
import signal, sys, threading, time
import numpy as np
from jaxclip.data import pipeline

signal.signal(signal.SIGINT, signal.default_int_handler)

def tokenize(texts):
    time.sleep(0.05)  # so that a batch is always in work
    return np.zeros((len(texts), 4), np.int32)

batches = pipeline.train_iterator(
    {"name": sys.argv[1], "image_size": 16, "image_ops": "blur(2.0, 1.0)", "cache_decoded_mb": 0},
    tokenizer=tokenize, global_batch_size=64, seed=0,
)
next(batches)
"""
_ENDS = {
    "exception": "print('ready', flush=True)\nraise SystemError('on purpose')",
    "generator": (
        "def generate():\n    for batch in batches:\n        yield batch\n"
        "unclosed = generate()\nnext(unclosed)\ndel batches\nprint('ready', flush=True)"
    ),
    "interrupt": "print('ready', flush=True)\nfor _ in batches:\n    pass",
    "thread": (
        "def consume():\n    for _ in batches:\n        pass\n"
        "threading.Thread(target=consume, daemon=True).start()\n"
        "time.sleep(0.2)\nprint('ready', flush=True)"
    ),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory, toys):
    """``start(name)`` of a program, which spends most of its time importing."""
    pytest.importorskip("tensorflow")
    folder = toys.write_data_set(tmp_path_factory.mktemp("d") / "d", {"train": toys.records(20)})
    running = []

    def start(name):
        command = [sys.executable, "-c", _PROGRAM + _ENDS[name], str(folder)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


# An iterator that is left open by an error, and one in use by another thread, are the two ways in
# which Python's end meets it; the others are ways to come to the first.
@pytest.mark.parametrize(
    "name",
    [
        "exception",
        "thread",
        pytest.param("generator", marks=pytest.mark.slow),
        pytest.param("interrupt", marks=pytest.mark.slow),
    ],
)
def test_a_program_with_an_open_iterator_ends(programs, name):
    process = programs(name)
    line = process.stdout.readline()
    if line.strip() != "ready":
        pytest.fail(process.communicate(timeout=LONG)[1])
    if name == "interrupt":
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG)  # a hang is for good
    expected = {"exception": (1, "on purpose"), "interrupt": (-signal.SIGINT, "KeyboardInterrupt")}
    code, message = expected.get(name, (0, ""))
    assert process.returncode == code and message in errors, errors
