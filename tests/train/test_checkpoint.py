"""Checkpoints: exact, whole or nothing, and honest about what is broken."""

import errno
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import storage
from jaxclip.parallel import make_mesh
from jaxclip.train import manifest, state_io
from jaxclip.train.checkpoint import Checkpointer, CheckpointError
from tests.patience import LONG

REPOSITORY = pathlib.Path(__file__).parents[2]


def make_state(seed=0, mesh=None, axis="data"):
    """A state with about everything a training state can hold."""
    rng = np.random.default_rng(seed)
    params = {
        "image": {
            "kernel": jnp.asarray(rng.normal(size=(16, 24)), jnp.float32),
            "bias": jnp.asarray([0.0, -0.0, np.nan, np.inf, 1e-42], jnp.float32),
        },
        "text": {"half": jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)},
        "logit_scale": jnp.float32(rng.normal()),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, mu_dtype="bfloat16"))
    state = {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": tx.init(params),
        "ema": None,
        "key": jax.random.split(jax.random.key(seed), 3),
        "raw_key": jax.random.PRNGKey(seed),
        "flags": jnp.array([True, False]),
        "bytes": jnp.asarray(rng.integers(0, 256, 9), jnp.uint8),
        "empty": jnp.zeros((0, 4)),
    }
    if mesh is None:
        return state

    def place(leaf):
        spec = PartitionSpec(axis) if leaf.ndim == 2 and leaf.shape[0] else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, state)


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def assert_same(actual, expected):
    """Equal structure, dtypes, shardings and bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_some(directory, steps=(1, 2), **options):
    """Save ``make_state(step)`` for each step."""
    with Checkpointer(directory, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, make_state(step), extra={"position": step})


def restore(directory, **options):
    with Checkpointer(directory, writable=False) as checkpointer:
        return checkpointer.restore_latest(abstract(make_state()), **options)


# Round trips.


def test_everything_comes_back_bit_for_bit(tmp_path):
    state = make_state(3, make_mesh({"data": 8}))
    with Checkpointer(tmp_path / "a" / "b") as checkpointer:
        assert checkpointer.restore_latest(abstract(state)) is None
        assert checkpointer.save(
            5, state, metrics={"top1": 0.25, "bad": float("nan")}, extra={"config": {"x": [1, "é"]}}
        )
        restored = checkpointer.restore_latest(abstract(state))
    assert_same(restored.state, state)
    assert (restored.step, restored.skipped) == (5, ())
    assert restored.extra == {"config": {"x": [1, "é"]}}
    assert restored.metrics["top1"] == 0.25 and np.isnan(restored.metrics["bad"])


def test_reading_makes_no_array_by_what_processes_do_together(tmp_path, monkeypatch):
    """One that could not read a file would leave the others to it: device_put compares values."""
    save_some(tmp_path, steps=[1])
    state = make_state(1, make_mesh({"data": 8}))
    put = jax.device_put

    def put_alone(value, place, **options):
        assert not isinstance(place, NamedSharding), "onto devices of others, too"
        return put(value, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_put", put_alone)
        restored = state_io.restore(epath.Path(tmp_path / "step_00000001/state"), abstract(state))
    assert_same(restored, state)


@pytest.mark.parametrize(
    ("saved_on", "read_on"), [({"data": 8}, {"data": 1}), ({"data": 1}, {"fsdp": 4, "data": 2})]
)
def test_another_mesh_reads_it(tmp_path, saved_on, read_on):
    def mesh_of(sizes):
        return make_mesh(sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(7, mesh_of(saved_on)))
    expected = make_state(7, mesh_of(read_on), axis=next(iter(read_on)))
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore_latest(abstract(expected)).state, expected)


def test_numpy_arrays_and_numbers_keep_their_kind(tmp_path):
    state = {"array": np.arange(3), "count": 4, "rate": 0.5, "flag": True}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        restored = checkpointer.restore_latest(state).state
    assert type(restored["array"]) is np.ndarray and restored["array"].tolist() == [0, 1, 2]
    assert (restored["count"], restored["rate"], restored["flag"]) == (4, 0.5, True)
    assert [type(restored[k]) for k in ("count", "rate", "flag")] == [int, float, bool]


def test_a_part_can_be_read_alone(tmp_path):
    save_some(tmp_path, [4])
    part = {"params": abstract(make_state(4)["params"])}
    with Checkpointer(tmp_path, writable=False) as checkpointer:
        assert_same(
            checkpointer.restore_latest(part, partial=True).state,
            {"params": make_state(4)["params"]},
        )
        with pytest.raises(ValueError, match=r"opt_state/.* of the checkpoint is unknown here"):
            checkpointer.restore_latest(part)


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    @jax.jit
    def fresh(seed):
        return {f"w{i}": jax.random.normal(jax.random.key(seed + i), (256, 256)) for i in range(8)}

    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0.5 + 1.0, s), donate_argnums=0)
    state = fresh(0)
    with Checkpointer(tmp_path, keep_last=9) as checkpointer:
        for number in range(4):
            checkpointer.save(number, state)
            for _ in range(3):
                state = step(state)
        expected = fresh(0)
        for number in range(4):
            found = checkpointer.restore(number, abstract(expected)).state
            jax.tree.map(np.testing.assert_array_equal, found, expected)
            for _ in range(3):
                expected = step(expected)


def test_saving_blocks_for_the_copy_alone(tmp_path, monkeypatch):
    let_go, write = threading.Event(), manifest.write

    def slow_write(*args):
        assert let_go.wait(LONG)
        write(*args)

    monkeypatch.setattr(manifest, "write", slow_write)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(1))
        assert checkpointer.steps() == []  # still being written, and save() has returned
        let_go.set()
        checkpointer.wait()
        assert checkpointer.steps() == [1]


# What is kept.


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: float("nan"), 5: 0.9, 6: 0.2, 7: None}
    options = {"keep_last": 2, "keep_best": 1, "best_metric": "top1"}
    with Checkpointer(tmp_path, **options) as checkpointer:
        for step, score in scores.items():
            metrics = None if score is None else {"top1": score}
            checkpointer.save(step, make_state(), metrics=metrics)
        checkpointer.wait()
        assert checkpointer.steps() == [2, 6, 7]  # of equals the earlier one
        assert checkpointer.best_step() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000002",
        "step_00000006",
        "step_00000007",
    ]


def test_best_may_be_the_smallest(tmp_path):
    options = {"keep_last": 1, "best_metric": "loss", "best_mode": "min"}
    with Checkpointer(tmp_path, **options) as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            checkpointer.save(step, make_state(), metrics={"loss": loss})
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]


def test_without_a_metric_only_the_newest_are_kept(tmp_path):
    save_some(tmp_path, range(5), keep_last=2)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.steps() == [3, 4] and checkpointer.best_step() is None


def test_saving_a_step_again_updates_its_metrics_alone(tmp_path):
    with Checkpointer(tmp_path, best_metric="top1") as checkpointer:
        assert checkpointer.save(1, make_state(1))
        assert not checkpointer.save(1, make_state(2), metrics={"top1": 0.5})
        restored = checkpointer.restore_latest(abstract(make_state()))
        assert_same(restored.state, make_state(1))
        assert restored.metrics == {"top1": 0.5} and checkpointer.best_step() == 1


def test_a_step_of_an_earlier_run_is_replaced(tmp_path):
    save_some(tmp_path, [1])
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.save(1, make_state(9))
    assert_same(restore(tmp_path).state, make_state(9))


def test_what_a_killed_save_left_is_removed_by_the_next_one(tmp_path):
    save_some(tmp_path, [1])
    (tmp_path / "step_00000002" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "step_00000000.removed").mkdir()
    restored = restore(tmp_path)
    assert restored.step == 1
    assert (tmp_path / "step_00000002").exists()  # readers change nothing
    save_some(tmp_path, [3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001", "step_00000003"]


# What is broken.


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {"flipped": flip, "cut": cut, "emptied": lambda p: p.write_bytes(b""), "lost": os.remove}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    save_some(directory, (1, 2))
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_found(two_checkpoints, tmp_path, caplog, damage):
    newest = "step_00000002"
    files = [p for p in sorted((two_checkpoints / newest).rglob("*")) if p.is_file()]
    assert len(files) > 8
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(two_checkpoints, directory)
        DAMAGES[damage](directory / newest / file.relative_to(two_checkpoints / newest))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jaxclip"):
            restored = restore(directory)
        assert restored.step == restored.extra["position"] == 1
        (line,) = restored.skipped
        assert str(directory / newest) in line and line in caplog.text
        named = "manifest.json" if file.name == "manifest.json" else "file"
        assert named in line
        if number == 0:
            assert_same(restored.state, make_state(1))


@pytest.mark.parametrize("piece", ["state", "state/d", "state/ocdbt.process_0", "manifest.json"])
def test_missing_pieces_are_found(two_checkpoints, tmp_path, piece):
    directory = tmp_path / "copy"
    shutil.copytree(two_checkpoints, directory)
    doomed = directory / "step_00000002" / piece
    doomed.unlink() if doomed.is_file() else shutil.rmtree(doomed)
    restored = restore(directory)
    assert restored.step == 1 and "missing" in restored.skipped[0]


@pytest.mark.parametrize("file", ["manifest.json", "state/_METADATA"])
def test_training_goes_on_over_a_damaged_one(two_checkpoints, tmp_path, file):
    directory = tmp_path / "copy"
    shutil.copytree(two_checkpoints, directory)
    flip(directory / "step_00000002" / file)
    with Checkpointer(directory, keep_last=5) as checkpointer:
        assert checkpointer.restore_latest(abstract(make_state())).step == 1
        assert checkpointer.save(2, make_state(2))
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2]
    assert_same(restore(directory).state, make_state(2))


def test_a_damaged_one_makes_way_for_a_newer_one_and_counts_for_nothing(two_checkpoints, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(two_checkpoints, directory)
    flip(directory / "step_00000002" / "state" / "_METADATA")
    with Checkpointer(directory, keep_last=2) as checkpointer:
        assert checkpointer.restore_latest(abstract(make_state())).step == 1
        assert checkpointer.steps() == [1]
        checkpointer.save(3, make_state(3))
        checkpointer.wait()
        assert checkpointer.steps() == [1, 3]
    assert sorted(p.name for p in directory.iterdir()) == ["step_00000001", "step_00000003"]


def test_none_whole_is_an_error_not_a_new_beginning(two_checkpoints, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(two_checkpoints, directory)
    for path in directory.glob("*/state/_METADATA"):
        flip(path)
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged") as caught:
        restore(directory)
    assert "step_00000001" in str(caught.value) and "step_00000002" in str(caught.value)


def test_only_an_unfinished_one_is_a_new_beginning(tmp_path):
    (tmp_path / "step_00000002" / "state").mkdir(parents=True)
    assert restore(tmp_path) is None


def test_an_array_file_that_reads_badly_despite_its_digest_is_passed_over(tmp_path):
    save_some(tmp_path, (1, 2))
    folder = tmp_path / "step_00000002"
    flip(folder / "state" / "_METADATA")
    content = manifest.read(storage.epath.Path(folder))
    manifest.write(storage.epath.Path(folder), content)  # digests of the damaged files
    restored = restore(tmp_path)
    assert restored.step == 1 and "step_00000002" in restored.skipped[0]


def test_another_model_is_refused_by_name(tmp_path):
    save_some(tmp_path)
    other = abstract(make_state())
    other["params"]["image"]["kernel"] = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    other["params"]["image"]["kernels"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    del other["flags"]
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(ValueError) as caught:
        checkpointer.restore_latest(other)
    message = str(caught.value)
    assert (
        "params/image/kernel is float32[16, 24] in the checkpoint, float32[16, 32] here" in message
    )
    assert "params/image/kernels is not in the checkpoint (it has params/image/kernel)" in message
    assert "flags of the checkpoint is unknown here" in message


def test_a_step_that_is_not_there(tmp_path):
    save_some(tmp_path)
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(1, abstract(make_state())).step == 1
        with pytest.raises(CheckpointError, match=r"no usable checkpoint of step 9 .* 1, 2"):
            checkpointer.restore(9, abstract(make_state()))


# What can't be written.


def test_an_unwritable_folder_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="a part of the path is a file"):
        Checkpointer(tmp_path / "file" / "checkpoints")


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only"), (errno.ENOSPC, "no space")],
)
def test_the_reason_is_told_in_words(tmp_path, monkeypatch, code, words):
    def refuse(self, *args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(type(storage.epath.Path(tmp_path)), "mkdir", refuse)
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpointer(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "disk"),
        ValueError("[tensorstore] Error writing: No space left on device"),
    ],
)
def test_a_full_disk_is_reported_and_harms_nothing(tmp_path, monkeypatch, error):
    save_some(tmp_path, [1])
    write = manifest.write

    def refuse(*args):
        raise error

    with Checkpointer(tmp_path) as checkpointer:
        monkeypatch.setattr(manifest, "write", refuse)
        checkpointer.save(2, make_state(2))
        with pytest.raises(CheckpointError) as caught:
            checkpointer.wait()
        message = str(caught.value)
        assert "checkpoint of step 2 was not written to " + str(tmp_path) in message
        assert "no space left" in message and "keep_last" in message and "GB free" in message
        assert "step 1 is the newest intact one" in message
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000001"]
        monkeypatch.setattr(manifest, "write", write)
        assert checkpointer.save(2, make_state(2))  # space was made
    assert restore(tmp_path).step == 2


def test_a_really_full_disk(tmp_path, caplog):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        big = {"w": jax.random.normal(jax.random.key(0), (512, 256))}
        with Checkpointer(small) as checkpointer:
            checkpointer.save(1, {"w": jnp.ones((4, 4))})
            checkpointer.save(2, big)
            with pytest.raises(CheckpointError, match="no space left"):
                checkpointer.wait()
            assert checkpointer.steps() == [1]
        assert not [record for record in caplog.records if record.exc_info], "no pages of orbax's"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_error_in_the_run_is_not_hidden_by_one_of_the_last_save(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "disk")

    monkeypatch.setattr(manifest, "write", refuse)
    with pytest.raises(ZeroDivisionError), Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state())
        raise ZeroDivisionError


def test_extra_must_be_json(tmp_path):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(TypeError):
        checkpointer.save(1, make_state(), extra={"x": object()})


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_best": -1}, {"best_mode": "maximum"}])
def test_bad_options_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"checkpoint.{next(iter(options))}"):
        Checkpointer(tmp_path, **options)


# Processes.

_ENDLESS = """
import sys, jax, jax.numpy as jnp
from jaxclip.train.checkpoint import Checkpointer
state = {"step": jnp.int32(0), "w": jnp.zeros((300, 100)), "v": [jnp.zeros(50)] * 6}
step = jax.jit(
    lambda s: {"step": s["step"] + 1, "w": s["w"] * 0.5 + s["step"],
               "v": [v + i * s["step"] for i, v in enumerate(s["v"])]},
    donate_argnums=0,
)
state = jax.tree.map(jnp.copy, state)
with Checkpointer(sys.argv[1], keep_last=2) as checkpointer:
    restored = checkpointer.restore_latest(state)
    state = state if restored is None else restored.state
    print("ready", int(state["step"]), flush=True)
    while True:
        state = step(state)
        checkpointer.save(int(state["step"]), state, extra={"step": int(state["step"])})
"""


def flags(devices):
    """XLA's flags of the tests, for so many virtual devices."""
    count = "--xla_force_host_platform_device_count="
    others = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(count)]
    return " ".join([*others, f"{count}{devices}"])


def run_python(code, *args, devices=1, **options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "XLA_FLAGS": flags(devices),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def state_after(steps):
    """What the endless run's state is after some steps."""
    step = jax.jit(
        lambda s: {
            "step": s["step"] + 1,
            "w": s["w"] * 0.5 + s["step"],
            "v": [v + i * s["step"] for i, v in enumerate(s["v"])],
        }
    )
    state = {"step": jnp.int32(0), "w": jnp.zeros((300, 100)), "v": [jnp.zeros(50)] * 6}
    for _ in range(steps):
        state = step(state)
    return state


def kill_and_restore(directory, kills, seed):
    rng = random.Random(seed)
    reached = 0
    for _ in range(kills):
        child = run_python(_ENDLESS, directory)
        try:
            assert child.stdout.readline().split() == ["ready", str(reached)]
            while not any(directory.glob("*/manifest.json")):
                assert child.poll() is None
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.6))
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate()
        with Checkpointer(directory, writable=False) as checkpointer:
            restored = checkpointer.restore_latest(abstract(state_after(0)))
        assert restored is not None and restored.step >= reached
        # A kill leaves unfinished checkpoints, never damaged ones.
        assert all("never finished" in line for line in restored.skipped)
        reached = restored.step
        assert restored.extra == {"step": reached}
        assert_same(restored.state, state_after(reached))


def test_a_killed_process_leaves_whole_checkpoints(tmp_path):
    kill_and_restore(tmp_path / "c", kills=3, seed=0)


@pytest.mark.slow
def test_a_process_killed_often_leaves_whole_checkpoints(tmp_path):
    kill_and_restore(tmp_path / "c", kills=25, seed=1)


_PAIR = """
import sys, pathlib, logging
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax.experimental import multihost_utils
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.parallel import make_mesh

directory, port, process = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(process))
mesh = make_mesh({"data": 4})
whole = np.arange(64.0, dtype=np.float32).reshape(8, 8)
def state(step):
    sharded = NamedSharding(mesh, P("data"))
    make = lambda: {"w": jnp.asarray(whole) * step, "step": jnp.int32(step)}
    return jax.jit(make, out_shardings={"w": sharded, "step": NamedSharding(mesh, P())})()
want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
with Checkpointer(directory, keep_last=2) as checkpointer:
    assert checkpointer.restore_latest(want) is None
    for step in (1, 2, 3):
        checkpointer.save(step, state(step), extra={"at": step})
multihost_utils.sync_global_devices("saved")
if process == "0":
    file = pathlib.Path(directory) / "step_00000003" / "state" / "_METADATA"
    file.write_bytes(file.read_bytes()[:-1])
multihost_utils.sync_global_devices("damaged")
with Checkpointer(directory, keep_last=2) as checkpointer:
    restored = checkpointer.restore_latest(want)
    assert restored.step == 2 and restored.extra == {"at": 2}
    for shard in restored.state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index] * 2)
    assert checkpointer.save(3, state(3))
    assert checkpointer.restore_latest(want).step == 3
    print("done", len(restored.skipped), flush=True)
"""


def test_two_processes_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    children = [run_python(_PAIR, tmp_path / "c", port, process, devices=2) for process in (0, 1)]
    try:
        outputs = [child.communicate(timeout=LONG)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0]
    # Process 0 alone looked at the files, and reported; the collectives' library prints, too.
    assert [output.split("\n")[-2] for output in outputs] == ["done 1", "done 0"]
    names = sorted(p.name for p in (tmp_path / "c").iterdir())
    assert names == ["step_00000002", "step_00000003"]


def test_the_manifest_is_json_that_anyone_reads(tmp_path):
    save_some(tmp_path, [1])
    content = json.loads((tmp_path / "step_00000001" / "manifest.json").read_text())
    assert content["step"] == 1 and content["extra"] == {"position": 1}
    assert content["tree"]["params/image/kernel"] == ["float32", [16, 24]]


def test_a_state_with_a_new_field_says_how_to_go_on() -> None:
    """As of an optimizer whose state has got one more number since the checkpoint was saved."""
    number = jax.ShapeDtypeStruct((), "int32")
    saved = state_io.describe({"params": {"w": number}, "opt_state": {"norm": number}})
    wanted = {"params": {"w": number}, "opt_state": {"norm": number, "streak": number}}
    path = epath.Path("/w/step_10")
    with pytest.raises(
        ValueError, match=r"opt_state/streak is not in .*\n.*earlier version.*init_from"
    ):
        state_io.check_tree(saved, wanted, path, partial=False)
    wanted["params"]["v"] = number
    with pytest.raises(ValueError, match="use the configuration it was saved with"):
        state_io.check_tree(saved, wanted, path, partial=False)
