"""Data workers: the same batches whatever becomes of them, and nothing of them is left behind."""

import errno
import io
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxclip.data import pipeline, wire
from jaxclip.data.ahead import Ahead, Closed
from jaxclip.data.image_op import IMAGE_OPS, register
from jaxclip.data.record import Record
from jaxclip.fields import PAIR, Boxes, Captions, Index, Label, Stored, View
from tests.patience import LONG, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers are for POSIX systems")

SPEC = {
    "image": View(),
    "text": Captions(),
    "longest": Captions(policy="longest", count=2),
    "small/image": View("resize|blur(1.0, 0.5)", 5),
    "label": Label(),
    "index": Index(),
    "vector": Stored("v", 3),
    "boxes": Boxes(2),
}


def photograph(seed):
    """A JPEG of noise, of one of several sizes."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (20 + seed % 3 * 9, 24, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toys):
    """A data set of 40 records, some of which are damaged in one way or another."""
    records = []
    for i in range(40):
        meta = {"v": [i, 1, 2], "boxes": [[0.1, 0.2, 0.6, 0.9]] * (i % 3)}
        image = photograph(i)
        if i % 11 == 5:
            image = image[: len(image) // 2]
        if i % 13 == 6:
            meta["v"] = "none"
        texts = (f"thing {i}", f"item {i}")
        records.append(Record(image, texts, i % 3, f"key{i}", json.dumps(meta)))
    folder = tmp_path_factory.mktemp("toy") / "toy"
    toys.write_data_set(folder, {"train": records}, shards=2)
    return {
        "name": str(folder),
        "image_size": 16,
        "image_ops": "random_resized_crop(0.3, 1.0)|flip",
        "num_parallel_calls": 2,
    }


def maker_of(config, tokenize, spec=SPEC):
    return pipeline.batch_maker(config, tokenizer=tokenize, global_batch_size=12, seed=3, spec=spec)


@pytest.fixture
def workers(toy, tokenize):
    """A batch maker with two workers, ended after the test."""
    maker = maker_of({**toy, "workers": 2}, tokenize)
    yield maker
    maker.reader.close()


@pytest.fixture(scope="module")
def expected(toy):
    """Batches 0 to 5, made in this process; and the counts of bad records."""

    def tokenize(texts):
        return np.array([[1 + t.startswith("item"), int(t.split()[-1])] for t in texts], np.int32)

    maker = maker_of(toy, tokenize)
    batches = [maker(step) for step in range(6)]
    maker.reader.close()
    return batches, maker.reader.stats.as_dict(), maker.reader.stats.drawn


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        assert batch[key].dtype == other[key].dtype
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def processes(maker):
    """The worker processes of a batch maker."""
    return [each.process for each in maker.reader._dispatcher._workers.values()]


def test_workers_make_the_same_batches_and_end_when_they_are_closed(workers, expected):
    batches, counts, drawn = expected
    for step in (0, 1, 2, 3, 4, 5):
        assert_same(workers(step), batches[step])
    assert workers.reader.stats.as_dict() == counts
    assert {"truncated", "bad_vector"} <= set(counts["records"])
    assert workers.reader.stats.drawn == drawn
    running = processes(workers)
    workers.reader.close()
    until(lambda: all(each.poll() is not None for each in running))
    with pytest.raises(Closed):
        workers(6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "threads", "hosts", "more"),
    [
        (1, 4, 1, {}),
        (1, 1, 2, {"image_backend": "fast"}),
        (3, 4, 3, {"cache_decoded_mb": 0}),
        (3, 1, 4, {"image_backend": "fast", "cache_decoded_mb": 0.01}),
    ],
)
def test_any_number_of_workers_threads_and_hosts(toy, tokenize, count, threads, hosts, more):
    def batches(hosts, **runtime):
        makers = [
            pipeline.batch_maker(
                {**toy, **more, **runtime},
                tokenizer=tokenize,
                global_batch_size=12,
                seed=3,
                process_index=host,
                process_count=hosts,
                spec=SPEC,
            )
            for host in range(hosts)
        ]
        parts = [[maker(step) for maker in makers] for step in range(5)]
        for maker in makers:
            maker.reader.close()
        return [
            {key: np.concatenate([part[key] for part in each]) for key in SPEC} for each in parts
        ]

    if "image_backend" in more:
        pytest.importorskip("cykooz_resizer")
    whole = batches(1, workers=0, num_parallel_calls=1)
    for batch, other in zip(
        batches(hosts, workers=count, num_parallel_calls=count * threads), whole, strict=True
    ):
        assert_same(batch, other)


def test_a_killed_worker_is_replaced_and_its_rows_are_made_again(workers, expected, caplog):
    assert_same(workers(0), expected[0][0])
    ahead = Ahead(workers, 1, num_threads=2, depth=3)
    first, second = processes(workers)
    os.kill(first.pid, signal.SIGKILL)
    os.kill(second.pid, signal.SIGSTOP)  # so that it is in the middle of something
    time.sleep(0.2)
    os.kill(second.pid, signal.SIGKILL)
    for step in range(1, 6):
        assert_same(ahead.take(step), expected[0][step])
    ahead.close()
    assert "was ended by SIGKILL" in caplog.text
    # More was made ahead, and none of it counts as anything else.
    assert workers.reader.stats.as_dict()["records"].keys() == expected[1]["records"].keys()


OP = """
import ctypes, os
from jaxclip.data.image_op import register

@register("deadly", level="example")
def deadly(parent: int = 0):
    def apply(image, u):
        if image.getpixel((0, 0)) == (1, 2, 3):
            assert os.getpid() != parent
            ctypes.string_at(0)
        return image
    return apply
"""


def test_a_record_that_ends_workers_is_counted_as_bad(
    tmp_path, toys, tokenize, monkeypatch, caplog
):
    (tmp_path / "ops_of_mine.py").write_text(OP)
    monkeypatch.syspath_prepend(tmp_path)
    records = toys.records(12)
    pixels = np.full((12, 12, 3), (1, 2, 3), np.uint8)
    records[7] = Record(toys.encode(pixels), ("thing 7",), key="seven")
    folder = toys.write_data_set(tmp_path / "data", {"train": records})
    config = {
        "name": str(folder),
        "image_size": 12,
        "image_ops": [{"op": "ops_of_mine:deadly", "parent": os.getpid()}],
        "workers": 1,
        "num_parallel_calls": 2,
    }
    maker = maker_of(config, tokenize, {"image": View(), "text": Captions(), "index": Index()})
    try:
        batches = [maker(step) for step in range(2)]
    finally:
        maker.reader.close()
        IMAGE_OPS._registered.pop("deadly", None)
    numbers = np.concatenate([batch["index"] for batch in batches])
    assert 7 not in numbers and set(numbers) == set(range(12)) - {7}
    assert maker.reader.stats.as_dict()["records"] == {"crashed": 1}
    assert caplog.text.count("data worker 0 was ended by SIGSEGV") == 2
    assert (
        "record 7 is crashed: a worker was ended by SIGSEGV while image ops on record 7"
        in caplog.text
    )


def test_what_a_worker_can_not_know_is_named(toy, tokenize):
    @register("of_this_test", level="example")
    def of_this_test():
        return lambda image, u: image

    try:
        config = {**toy, "image_ops": "of_this_test", "workers": 1}
        maker = maker_of(config, tokenize, PAIR)
        with pytest.raises(ValueError, match=r"unknown image op 'of_this_test'.*data\.workers=0"):
            maker(0)
        maker.reader.close()
    finally:
        IMAGE_OPS._registered.pop("of_this_test", None)


def test_no_room_for_shared_memory_is_one_line(toy, tokenize, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ValueError, match=r"no room for .* MiB .*No space left.*data\.workers"):
        maker_of({**toy, "workers": 2}, tokenize)


# --- programs with workers, and how they end ----------------------------------------------------

# No `if __name__ == "__main__"`: a worker that imported this file would print again.
PROGRAM = """
import signal, sys, threading, time
import numpy as np
from jaxclip.data import pipeline
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
from jaxclip.data.ahead import Ahead

def tokenize(texts):
    return np.zeros((len(texts), 4), np.int32)

maker = pipeline.batch_maker(
    {"name": sys.argv[1], "image_size": 16, "workers": 2},
    tokenizer=tokenize, global_batch_size=64, seed=0,
)
ahead = Ahead(maker, 0)
ahead.take(0)
print(*[each.process.pid for each in maker.reader._dispatcher._workers.values()], flush=True)
"""
ENDS = {
    "end": "",
    "exception": "raise SystemError('on purpose')",
    "interrupt": "for step in range(1, 10**9):\n    ahead.take(step)",
    "kill": "for step in range(1, 10**9):\n    ahead.take(step)",
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory, toys):
    """All programs at once: each spends most of its time importing."""
    root = tmp_path_factory.mktemp("programs")
    folder = toys.write_data_set(root / "d", {"train": toys.records(20)})
    running = {}
    for name, end in ENDS.items():
        (root / f"{name}.py").write_text(PROGRAM + end)
        running[name] = subprocess.Popen(
            [sys.executable, str(root / f"{name}.py"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_however_a_program_ends_its_workers_end(programs, name):
    process = programs[name]
    line = process.stdout.readline()
    pids = [int(each) for each in line.split()]
    assert len(pids) == 2, process.communicate(timeout=LONG)[1]
    if name == "interrupt":
        process.send_signal(signal.SIGINT)
    if name == "kill":
        process.kill()
    output, errors = process.communicate(timeout=LONG)
    code, message = {
        "end": (0, ""),
        "exception": (1, "on purpose"),
        "interrupt": (-signal.SIGINT, "KeyboardInterrupt"),
        "kill": (-signal.SIGKILL, ""),
    }[name]
    assert process.returncode == code and message in errors, errors
    assert not output  # no worker has run the program
    assert errors.count("Traceback") == (name in ("exception", "interrupt"))
    until(lambda: not any(map(is_running, pids)))
    shared = pathlib.Path("/dev/shm")
    assert not shared.exists() or not list(shared.glob("*jaxclip*"))


# --- what is under way ---------------------------------------------------------------------------


def test_a_stall_is_reported_with_its_stage(workers, caplog):
    workers(0)
    for process in processes(workers):
        os.kill(process.pid, signal.SIGSTOP)
    stopped = processes(workers)

    def busy():
        """Asked when the batch has been waited for: then the workers go on."""
        for process in stopped:
            os.kill(process.pid, signal.SIGCONT)
        return workers.reader.busy()

    ahead = Ahead(workers, 1, patience=0.3, waits_for=busy)
    with caplog.at_level(logging.WARNING):
        ahead.take(1)
    ahead.close()
    (first, *_) = [each for each in caplog.messages if each.startswith("waited ")]
    assert first.startswith("waited 0 s for batch 1: ")


def test_an_error_in_a_worker_keeps_its_words_and_its_slot(workers, expected, monkeypatch):
    """As often as it may be, and errors that can't be made of their text alone, too."""
    from jaxclip.data.dispatcher import Dispatcher

    finish = Dispatcher._finish

    def fail(self, worker, message, arrays):
        finish(self, worker, {**message, "error": ["UnicodeDecodeError", "odd bytes"]}, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Dispatcher, "_finish", fail)
        for _ in range(2 * len(workers.reader._dispatcher.views)):
            with pytest.raises(ValueError, match="odd bytes"):
                workers(0)
    assert_same(workers(0), expected[0][0])


def test_a_mistake_in_the_order_leaves_no_workers(toy, tokenize, monkeypatch):
    monkeypatch.setattr(pipeline, "_reader", lambda *_: pytest.fail("workers were started"))
    with pytest.raises(ValueError, match="must name a file"):
        maker_of({**toy, "workers": 2, "sampling": "file"}, tokenize)
    with pytest.raises(ValueError, match="can't be read"):
        maker_of({**toy, "workers": 2, "sampling": "file('/nowhere/w.npy')"}, tokenize)


def test_messages_survive_any_cut():
    arrays = [np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 4), np.float32)]
    data = wire.encode({"a": [1, "ö\ud800"]}, arrays) + wire.encode({"b": None})
    for size in (1, 7, len(data)):
        parser, found = wire.Parser(), []
        for start in range(0, len(data), size):
            found += parser.feed(data[start : start + size])
        assert [message for message, _ in found] == [{"a": [1, "ö\ud800"]}, {"b": None}]
        for array, other in zip(arrays, found[0][1], strict=True):
            np.testing.assert_array_equal(array, other)
            assert array.dtype == other.dtype
