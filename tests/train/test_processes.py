"""Several real processes on this machine train what one process trains.

The children run ``jaxclip train`` as a launch script starts it, under a driver that notes which
places of the data each of them reads, and how much of checkpoints it fetches, and hurts itself at a
step where the test says so.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import lock
from jaxclip.data.bucket import Bucket
from jaxclip.train import checkpoint, loop, metrics, setup, staging
from tests.google_store import serve

REPOSITORY = pathlib.Path(__file__).parents[2]
# Seconds after which JAX gives up a process that says nothing; the machine may be busy.
HEARTBEAT = 60
LIMIT = 900  # seconds after which something hangs
STEPS = 6
BATCH = 16

# A batch of the evaluation does not divide its 16 examples.
OVERRIDES = (
    f"total_steps={STEPS}",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=10",
    "log_every_steps=1",
    "evaluate.every_steps=4",
    "evaluate.batch_size=6",
    f"distributed.heartbeat_timeout_seconds={HEARTBEAT}",
)


def flags(devices):
    """XLA's flags of the tests, for so many virtual devices."""
    count = "--xla_force_host_platform_device_count="
    others = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(count)]
    return " ".join([*others, f"{count}{devices}"])


_DRIVER = """
import errno, json, os, pathlib, signal, sys, threading, time
from jaxclip import cli
from jaxclip.data import bucket, order, pipeline
from jaxclip.train import checkpoint, manifest, workdir

workdir._SHARING_SECONDS = 1.0
manifest.BLOCK = 2**13  # the checkpoints are small, too
note, harm, at_step, *argv = sys.argv[1:]
places = []
look_up, following = order.ShuffledOrder.__call__, pipeline.TrainIterator.__next__

def noting(self, rows):
    places.append([int(row) for row in rows])
    return look_up(self, rows)

taken = 0

def harming(self):
    global taken
    taken += 1
    if harm and taken == int(at_step):
        if harm == "raise":
            raise RuntimeError("harmed")
        os.kill(os.getpid(), getattr(signal, harm, 0))
        if harm == "SIGTERM":  # JAX spreads it within seconds; tiny steps would be done by then
            time.sleep(30)
    return following(self)

fetched = 0
read = bucket.Bucket._read

def fetching(self, name, *arguments, **options):
    global fetched
    found = read(self, name, *arguments, **options)
    if "/d/" in name:
        fetched += len(found.value)
        if harm == "outage":
            raise bucket.BucketError(f"{self / name} can't be read: no route to host")
    return found

write = pathlib.Path.open

def writing(self, mode="r", *arguments, **options):
    if "/d/" in str(self) and "checkpoints/step" not in str(self) and mode == "r+b":
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(self, mode, *arguments, **options)

finish = checkpoint.ocp.AsyncCheckpointer.wait_until_finished

def unsaved(self):
    finish(self)
    if threading.current_thread().name == "checkpoint_commit":
        raise OSError(errno.ENOSPC, "No space left on device")

if harm == "full save":
    checkpoint.ocp.AsyncCheckpointer.wait_until_finished = unsaved
if harm == "full":
    pathlib.Path.open = writing
bucket.Bucket._read = fetching
order.ShuffledOrder.__call__ = noting
pipeline.TrainIterator.__next__ = harming
status = cli.main(argv)
pathlib.Path(note + ".fetched").write_text(str(fetched))
pathlib.Path(note).write_text(json.dumps(places))
sys.exit(status)
"""


class Processes:
    """The processes of one run, each with a file for what it says."""

    def __init__(self, cache, folder, count, config, workdirs, *, devices=1, harm=(-1, "", 0)):
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.logs = [folder / f"process_{i}.log" for i in range(count)]
        self.notes = [folder / f"places_{i}.json" for i in range(count)]
        self.children = []
        for i in range(count):
            environment = {
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": flags(devices),
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
                "JAXCLIP_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAXCLIP_NUM_PROCESSES": str(count),
                "JAXCLIP_PROCESS_ID": str(i),
            }
            who, what, when = harm
            driver = [self.notes[i], what if who == i else "", when]
            train = ["train", "--config", config, "--workdir", workdirs[i % len(workdirs)]]
            with self.logs[i].open("wb") as log:
                self.children.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _DRIVER, *map(str, driver), *map(str, train)],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()

    def wait(self, which=None):
        """Wait for some (default: all) to end; returns their statuses, negative for signals."""
        which = list(range(len(self.children)) if which is None else which)
        deadline = time.monotonic() + LIMIT
        while any(self.children[i].poll() is None for i in which):
            assert time.monotonic() < deadline, self.log(which[0])
            time.sleep(0.02)
        return [self.children[i].returncode for i in which]

    def log(self, i):
        return self.logs[i].read_text(errors="replace")

    def places(self, i):
        """What process ``i`` read of the training data, by step."""
        read = json.loads(self.notes[i].read_text())
        return {row[0] // BATCH: row for row in read}

    def fetched(self, i):
        """Bytes of arrays that process ``i`` fetched of checkpoints."""
        return int(pathlib.Path(f"{self.notes[i]}.fetched").read_text())


@pytest.fixture
def processes(cache_dir):
    """:class:`Processes` that compile nothing twice."""
    return functools.partial(Processes, cache_dir)


@pytest.fixture(scope="module")
def config_file(tiny_config, tmp_path_factory):
    """``make(*overrides) -> path`` of a config file."""

    def make(*overrides):
        file = tmp_path_factory.mktemp("configs") / "small.py"
        config = tiny_config(*OVERRIDES, *overrides)
        file.write_text(f"def get_config(arg=''):\n    return {config!r}\n")
        return file

    return make


@pytest.fixture(scope="module")
def train_here(compilation_cache):
    """``train(config file, workdir, devices)``: train in this process on so many devices."""

    def train(file, workdir, devices):
        config = config_lib.resolve(config_lib.load_file(file))
        build = functools.partial(setup.build, devices=jax.devices()[:devices])
        with pytest.MonkeyPatch.context() as patch, compilation_cache():
            patch.setattr(loop.setup, "build", build)
            assert loop.train(config, workdir).finished
        return workdir

    return train


@pytest.fixture(scope="module")
def reference(config_file, train_here, tmp_path_factory):
    """Workdir of an uninterrupted run of one process with two devices."""
    return train_here(config_file(), tmp_path_factory.mktemp("runs") / "reference", 2)


def states(workdir):
    """The content of each checkpoint, ``{step: {name: array}}``, read without its shardings."""
    found = {}
    with checkpoint.Checkpointer(workdir / "checkpoints", writable=False) as checkpointer:
        for step in checkpointer.steps():
            folder = workdir / "checkpoints" / f"step_{step:08d}"
            tree = json.loads((folder / "manifest.json").read_text())["tree"]
            want = {
                name: jax.ShapeDtypeStruct(shape, dtype)
                for name, (dtype, shape) in tree.items()
                if not dtype.startswith("key")
            }
            state = checkpointer.restore(step, nest(want), partial=True).state
            leaves = jax.tree_util.tree_leaves_with_path(state)
            found[step] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found


def nest(flat):
    nested = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        node = nested
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = value
    return nested


def curves(workdir):
    """What ``metrics.jsonl`` holds beside times and speeds."""
    found = metrics.curves(metrics.read_metrics(workdir))
    assert "loss" in found and "grad_norm" in found
    return {
        name: (steps.tolist(), values)
        for name, (steps, values) in found.items()
        if name not in ("time", "images_per_second")
    }


def results(workdir):
    evaluated = json.loads((workdir / "eval.json").read_text())
    numbers = {weights: (found["step"], found["metrics"]) for weights, found in evaluated.items()}
    return numbers, json.loads((workdir / "gallery.json").read_text())


def assert_same_run(one, other, *, rtol=0.0, atol=0.0):
    """Checkpoints and curves agree to tolerance; evaluations, which only count, exactly."""
    ours, theirs = states(one), states(other)
    assert max(ours) == max(theirs) == STEPS
    for step in ours.keys() & theirs.keys():
        assert ours[step].keys() == theirs[step].keys() and len(ours[step]) > 50
        for name, value in ours[step].items():
            if rtol and name.endswith("['attention']['key']['bias']"):
                continue  # the softmax cancels it: Adam scales up the rounding noise
            np.testing.assert_allclose(value, theirs[step][name], rtol, atol, err_msg=name)
    curves_one, curves_other = curves(one), curves(other)
    assert curves_one.keys() == curves_other.keys()
    for name, (steps, values) in curves_one.items():
        assert steps == curves_other[name][0]
        np.testing.assert_allclose(values, curves_other[name][1], rtol, atol, err_msg=name)
    assert results(one) == results(other)


def assert_shares(run, count, steps):
    """Each process read its rows of each batch, and no others."""
    rows = BATCH // count
    for i in range(count):
        read = run.places(i)
        for step in steps:
            first = step * BATCH + i * rows
            assert read[step] == list(range(first, first + rows))


def test_two_processes_train_and_evaluate_as_one_to_the_bit(
    tmp_path, processes, config_file, reference
):
    workdir = tmp_path / "run"
    with processes(tmp_path, 2, config_file(), [workdir]) as run:
        assert run.wait() == [0, 0], run.log(0) + run.log(1)
        assert_shares(run, 2, range(STEPS))
        assert "2 process(es)" in run.log(0)
        assert "workdir" not in run.log(1) and "loss" not in run.log(1)
    assert list(states(workdir)) == [2, 4, 6]
    assert_same_run(workdir, reference)


def test_a_killed_process_ends_the_other_and_one_process_goes_on(
    tmp_path, processes, config_file, reference, train_here
):
    workdir, file = tmp_path / "run", config_file()
    with processes(tmp_path, 2, file, [workdir], harm=(1, "SIGKILL", 5)) as run:
        (status,) = run.wait([0])
        assert run.wait([1]) == [-signal.SIGKILL]
        # By an error in a collective; or first by JAX's own watch, which aborts.
        if status == 1:
            assert re.search(
                r"jaxclip: error: process 0 of 2 on \S+ lost another one.*\n$", run.log(0)
            ), run.log(0)
            assert "The same command goes on from the newest checkpoint" in run.log(0)
            assert "Traceback" not in run.log(0)
        else:
            assert status == -signal.SIGABRT
            assert "This most likely indicates that another task died" in run.log(0)
    # The step after the newest checkpoint, 2 or 4, is where it goes on.
    assert max(states(workdir)) in (2, 4)
    train_here(file, workdir, 2)
    assert_same_run(workdir, reference)


def test_a_workdir_of_its_own_for_each_process_is_refused(tmp_path, processes, config_file):
    workdirs = [tmp_path / "one", tmp_path / "two"]
    with processes(tmp_path, 2, config_file(), workdirs) as run:
        statuses = run.wait()
    for i in range(2):
        # Process 0 takes JAX's service with it, and JAX may be the first to say so.
        assert statuses[i] == 2 or (i == 1 and statuses[i] == -signal.SIGABRT), run.log(i)
    assert "another process than process 0 on" in run.log(0)
    assert "does not see what process 0 writes there" in run.log(0)


@pytest.mark.slow
def test_four_processes_with_a_sharded_model(tmp_path, processes, config_file, train_here):
    sharding = ["mesh={'data': 1, 'fsdp': 2, 'tensor': 2}", "sharding=fsdp+tp"]
    file = config_file(*sharding)
    with processes(tmp_path, 4, file, [tmp_path / "four"]) as run:
        assert run.wait() == [0] * 4, "".join(map(run.log, range(4)))
        # Two processes hold the same half of each batch.
        for i in range(4):
            first = i // 2 * (BATCH // 2)
            assert run.places(i)[0] == list(range(first, first + BATCH // 2))
    here = train_here(file, tmp_path / "here", 4)
    assert_same_run(tmp_path / "four", here, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_a_stop_is_spread_and_any_number_of_processes_goes_on(
    tmp_path, processes, config_file, reference
):
    workdir, file = tmp_path / "run", config_file()
    with processes(tmp_path / "a", 4, file, [workdir], harm=(2, "SIGTERM", 3)) as run:
        assert run.wait() == [128 + signal.SIGTERM] * 4, "".join(map(run.log, range(4)))
    (stopped,) = re.findall(r"stopped after step (\d+)", run.log(0))
    assert int(stopped) == max(states(workdir)) < STEPS
    with processes(tmp_path / "b", 2, file, [workdir], devices=4) as run:
        assert run.wait() == [0, 0], run.log(0) + run.log(1)
        assert f"going on after step {stopped}" in run.log(0)
        assert_shares(run, 2, range(int(stopped), STEPS))
    assert_same_run(workdir, reference, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("harmed", [0, 3])
def test_an_error_in_one_process_ends_all(tmp_path, processes, config_file, harmed):
    with processes(tmp_path, 4, config_file(), [tmp_path / "r"], harm=(harmed, "raise", 3)) as run:
        statuses = run.wait()
    assert statuses[harmed] == 1 and all(statuses)
    assert "RuntimeError: harmed" in run.log(harmed)
    for i in {*range(4)} - {harmed}:
        assert "lost another one" in run.log(i) or "another task died" in run.log(i)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others(tmp_path, processes, config_file):
    """By their missing its heartbeats."""
    file = config_file("distributed.heartbeat_timeout_seconds=20")
    with processes(tmp_path, 2, file, [tmp_path / "run"], harm=(1, "SIGSTOP", 3)) as run:
        began = time.monotonic()
        while "2/6" not in run.log(0):
            assert run.children[0].poll() is None and time.monotonic() < began + LIMIT, run.log(0)
            time.sleep(0.05)
        assert run.wait([0]) == [-signal.SIGABRT]
        assert run.children[1].poll() is None  # stopped, not dead: JAX counts it as gone
        assert "stopped sending heartbeats" in run.log(0)


def test_processes_of_one_run_share_its_lock_and_a_second_run_is_refused_by_all(
    tmp_path, processes, config_file
):
    """The lock of the first run is that of this test's process, which lives."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    first = lock.Lock(workdir)
    with processes(tmp_path / "second", 2, config_file(), [workdir]) as run:
        assert all(run.wait())
        (line,) = [line for line in run.log(0).splitlines() if "jaxclip: error" in line]
        assert f"in use by process {first.holder.pid} on host {first.holder.host}" in line
        assert "process 0 of 2 on" in run.log(1) or "another task died" in run.log(1), run.log(1)
        assert "Traceback" not in run.log(0) + run.log(1)
    assert [path.name for path in workdir.iterdir()] == [lock.FILE_NAME]
    first.check()
    first.release()


@pytest.mark.slow
def test_two_processes_go_back_from_spikes_as_one_does(
    tmp_path, processes, config_file, train_here
):
    """With a limit that ordinary noise passes there are spikes enough."""
    file = config_file(
        "total_steps=24", "optim.learning_rate=1e-4", "optim.clip=none",
        "on_spike.actions=rewind", "on_spike.rewind_steps=1",
        "on_spike.rewind_limit=100", "watch.threshold=1.0",
        "watch.window=8", "watch.min_history=3", "evaluate.every_steps=0",
    )  # fmt: skip
    workdir = tmp_path / "run"
    with processes(tmp_path, 2, file, [workdir]) as run:
        assert run.wait() == [0, 0], run.log(0) + run.log(1)
        assert "going back to step" in run.log(0)
    reference = train_here(file, tmp_path / "reference", 2)
    done = []
    for folder in (workdir, reference):
        last = folder / "checkpoints" / "step_00000024" / "manifest.json"
        done.append(json.loads(last.read_text())["extra"]["rewinds"])
    assert done[0] == done[1] and done[0]
    ours, theirs = states(workdir), states(reference)
    for name, value in ours[24].items():
        np.testing.assert_array_equal(value, theirs[24][name], err_msg=name)
    spikes = sorted(path.name for path in (workdir / "spikes").iterdir())
    assert spikes == sorted(path.name for path in (reference / "spikes").iterdir())
    assert spikes == ["rewinds.json"]


@pytest.mark.slow
def test_processes_that_share_nothing_but_an_address(
    tmp_path, processes, config_file, train_here, monkeypatch
):
    """Each holds half of every large tensor, and its files come to the address from it alone."""
    file, address = config_file("mesh={'data': 1, 'fsdp': 2}", "sharding=fsdp"), "gs://runs/apart"
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    with serve(monkeypatch) as google:
        with processes(tmp_path / "once", 2, file, [address], harm=(1, "SIGKILL", 5)) as run:
            run.wait()
        assert any("ocdbt.process_1/d/" in name for name in google.files), run.log(0) + run.log(1)
        shutil.rmtree(tmp_path / "staging")  # other machines
        before = dict(google.files)
        with processes(tmp_path / "again", 2, file, [address]) as run:
            assert run.wait() == [0, 0], run.log(0) + run.log(1)
            (step,) = re.findall(r"going on after step ([24]) of", run.log(0))
            folder = re.compile(rf"apart/checkpoints/step_0000000{step}/state/.*/d/")
            size = sum(len(content) for name, (_, content) in before.items() if folder.match(name))
            # Both read what is too small to be divided, and the index.
            fetched = [run.fetched(i) for i in range(2)]
            assert all(0.4 * size < each < 0.8 * size for each in fetched), (size, fetched)
            assert sum(fetched) > size
        copy = staging.Copy(Bucket(address), tmp_path / "copy")
        names = copy.pull()
        for step in {name.split("/")[1] for name in names if name.startswith("checkpoints/")}:
            copy.fetch(step)
    assert "config.json" in names and lock.FILE_NAME not in names
    assert not list((tmp_path / "staging").glob("*-1/run/checkpoints/*/state")), (
        "no need of the disk"
    )
    assert_same_run(tmp_path / "copy", train_here(file, tmp_path / "here", 2))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["outage", "full"])
def test_a_checkpoint_that_one_process_can_not_fetch_ends_all(
    tmp_path, processes, config_file, monkeypatch, harm
):
    """By one and the same line, and nothing is lost."""
    file, address = config_file("mesh={'data': 1, 'fsdp': 2}", "sharding=fsdp"), "gs://runs/apart"
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    with serve(monkeypatch):
        with processes(tmp_path / "a", 2, file, [address], harm=(0, "SIGTERM", 4)) as run:
            assert run.wait() == [128 + signal.SIGTERM] * 2, run.log(0) + run.log(1)
        before = Bucket(address).names("checkpoints/")
        shutil.rmtree(tmp_path / "staging")  # other machines
        with processes(tmp_path / "b", 2, file, [address], harm=(1, harm, 0)) as run:
            assert run.wait() == [1, 1], run.log(0) + run.log(1)
        lines = [
            [line for line in run.log(i).splitlines() if line.startswith("jaxclip: error: ")]
            for i in range(2)
        ]
        assert len(lines[0]) == 1 and lines[0] == lines[1]
        why = {"outage": "no route to host", "full": "no space left on the device"}[harm]
        assert re.search(
            rf"gs://runs/apart/checkpoints/step_\d+ can't be fetched by all processes: "
            rf"process 1 of 2 on .*{why}", lines[0][0]
        ), lines  # fmt: skip
        assert Bucket(address).names("checkpoints/") == before
        assert not list((tmp_path / "staging").glob("*/run/.shards")), "it leaves no files behind"


@pytest.mark.slow
def test_a_full_disk_of_one_process_ends_all_at_once(tmp_path, processes, config_file, monkeypatch):
    """By one and the same line; nobody waits for a part that will not come."""
    file = config_file("mesh={'data': 1, 'fsdp': 2}", "sharding=fsdp", "evaluate.every_steps=0")
    monkeypatch.setenv("JAXCLIP_STAGING", str(tmp_path / "staging"))
    with serve(monkeypatch) as google:
        with processes(tmp_path, 2, file, ["gs://runs/apart"], harm=(1, "full save", 0)) as run:
            assert run.wait() == [1, 1], run.log(0) + run.log(1)
        assert not any(name.endswith("manifest.json") for name in google.files)
    lines = [
        [line for line in run.log(i).splitlines() if line.startswith("jaxclip: error: ")]
        for i in range(2)
    ]
    assert len(lines[0]) == 1 and lines[0] == lines[1], run.log(0) + run.log(1)
    assert re.search(r"process 1 of 2 on .*step 2 .*no space left on the device", lines[0][0])
    assert "Traceback" not in run.log(0) + run.log(1)
