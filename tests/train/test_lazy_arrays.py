"""Checkpoints of arrays that are made one after the other, when they are written."""

import weakref

import ml_dtypes
import numpy as np
import pytest

from jaxclip.train.checkpoint import Checkpointer, CheckpointError
from jaxclip.train.lazy_arrays import LazyArray

SHAPES = {"a": ((3, 4), np.float32), "b": ((), np.float32), "c": ((2000,), ml_dtypes.bfloat16)}


def values(name):
    shape, dtype = SHAPES[name]
    return np.random.default_rng(len(name)).standard_normal(shape).astype(dtype)


def save(folder, state, **options):
    with Checkpointer(folder, **options) as checkpointer:
        checkpointer.save(0, state)
        checkpointer.wait()


def test_they_are_read_like_any_others_and_one_is_alive_at_a_time(tmp_path, caplog):
    alive, most = [0], [0]

    def make(name):
        array = values(name).copy()  # an array of its own memory, which a weak reference can watch
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(array, lambda: alive.__setitem__(0, alive[0] - 1))
        return array

    lazy = {
        name: LazyArray(shape, np.dtype(dtype), lambda name=name: make(name))
        for name, (shape, dtype) in SHAPES.items()
    }
    state = {"step": np.zeros((), np.int32), "params": lazy}
    save(tmp_path, state, one_by_one=True)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert most[0] == 1 and alive[0] == 0
    wanted = {"params": {name: np.empty(*SHAPES[name]) for name in SHAPES}}
    with Checkpointer(tmp_path, writable=False) as checkpointer:
        found = checkpointer.restore_latest(wanted, partial=True).state["params"]
    for name, array in found.items():
        assert array.dtype == SHAPES[name][1]
        np.testing.assert_array_equal(array, values(name), err_msg=name)


def test_what_was_made_must_be_what_was_said(tmp_path):
    wrong = LazyArray((3,), np.dtype(np.float32), lambda: np.zeros((4,), np.float32))
    with pytest.raises(CheckpointError, match=r"float32\[4\] was made where float32\[3\] had been"):
        save(tmp_path, {"a": wrong}, one_by_one=True)
    assert not list(tmp_path.glob("step_*"))
