"""What holds for every objective of the registry; a new one joins by existing.

Each is trained for two steps on one device and, cut into four micro-batches, on eight: both
compiled once, which all checks share.
"""

import copy
import functools
import warnings

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip import objectives, parallel
from jaxclip.plan import program
from jaxclip.train import dry_run, setup
from jaxclip.train import state as state_lib
from jaxclip.train.checkpoint import Checkpointer

BATCH = 32
TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
BASE = {
    "total_steps": 10,
    "global_batch_size": BATCH,
    "data": {"image_size": 16},
    "tokenizer": {"context_length": 8},
    "model": {
        "image": {"patch_size": 4, **TOWER},
        "text": {"vocab_size": 64, **TOWER},
        "embed_dim": 16,
    },
    "optim": {
        "name": "sgd",
        "learning_rate": 1.0,
        "weight_decay": 0.0,
        "clip": "none",
        "schedule": {"name": "constant", "warmup_steps": 0},
    },
}

NAMES = objectives.REGISTRY.names()

# They share all but the last lines of their loss with clip_rocket and byolip, which stand for them
# where eight devices are compared with one; `-m slow` compares these, too.
NEAR_DUPLICATES = ("barlip", "siamlip", "swalip")


def configuration(name, **given):
    """A small run of one objective, with a teacher where it wants one."""
    kind = objectives.REGISTRY.get(name)
    config = copy.deepcopy(BASE)
    config["objective"] = [{"name": name, **kind.small}]
    for tower, sizes in kind.small_model.items():
        config["model"][tower] |= sizes
    objective = objectives.REGISTRY.build(config["objective"][0])
    wanted = {*objective.needs, *objective.row_needs}
    if any(output.startswith("teacher/") for output in wanted):
        config["teacher"] = {"kind": "ema", "decay": 0.5}
    return config_lib.resolve({**config, **given})


class Run:
    """Two steps of an objective; ``start`` is the state before them, made if it is None."""

    def __init__(self, name, devices, num_micro_batches, start=None):
        config = configuration(name, num_micro_batches=num_micro_batches)
        self.experiment = setup.build(config, devices=jax.devices()[:devices])
        self.states, self.metrics = [], []
        if start is None:
            state = self.experiment.init_state()
        else:
            state = jax.device_put(start, self.experiment.state_shardings)
        for step in range(2):
            self.states.append(jax.tree.map(np.asarray, state))
            state, metrics = self.experiment.train_step(state, self.batch(step))
            self.metrics.append({key: float(value) for key, value in metrics.items()})
        self.states.append(jax.tree.map(np.asarray, state))

    def batch(self, step):
        config = {**self.experiment.config, "seed": step}
        made_up = dry_run.made_up_batch(config, self.experiment.batch_spec)
        return parallel.to_global(made_up, self.experiment.mesh)


@functools.cache
def run(name, devices=1, num_micro_batches=1):
    start = None if devices == 1 else run(name).states[0]
    return Run(name, devices, num_micro_batches, start)


def pytest_generate_tests(metafunc):
    of_devices = metafunc.function is test_micro_batches_and_devices_change_nothing
    names = [
        pytest.param(name, marks=pytest.mark.slow)
        if name in NEAR_DUPLICATES and of_devices
        else name
        for name in NAMES
    ]
    metafunc.parametrize("name", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def name(request):
    """Each objective in turn: all its tests together, then its programs are let go."""
    yield request.param
    run.cache_clear()
    jax.clear_caches()


def names_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_it_trains_and_compiles_once(name):
    result = run(name)
    for metrics in result.metrics:
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert metrics[f"{name}/loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    first, second, _ = (names_of(state.params) for state in result.states)
    changed = {key for key in first if not np.array_equal(first[key], second[key])}
    own = {key for key in first if key.startswith("objective/")}
    assert own <= changed, f"never trained: {own - changed}"
    assert any(key.startswith("image/") for key in changed)
    assert result.experiment.train_step._cache_size() == 1


def test_micro_batches_and_devices_change_nothing(name):
    whole, cut = run(name), run(name, 8, 4)
    np.testing.assert_allclose(cut.metrics[0]["loss"], whole.metrics[0]["loss"], rtol=2e-5)
    start = names_of(whole.states[0].params)
    expected, result = (names_of(r.states[1].params) for r in (whole, cut))
    largest = max(np.abs(expected[key] - start[key]).max() for key in expected)
    for key in expected:  # with SGD at rate 1 the change is the gradient
        np.testing.assert_allclose(result[key], expected[key], atol=2e-5 * largest, err_msg=key)
    ours, theirs = (names_of(r.states[1].objective) for r in (whole, cut))
    for key, state in ours.items():
        np.testing.assert_allclose(theirs[key], state, rtol=1e-4, atol=1e-6, err_msg=key)


def test_its_state_keeps_its_form_and_ignores_broken_steps(name):
    result = run(name)
    before = names_of(result.states[0].objective)
    after = names_of(result.states[2].objective)
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {
        k: (v.shape, v.dtype) for k, v in after.items()
    }
    if before:
        broken = result.states[2]
        params = copy.deepcopy(broken.params)
        params["logit_scale"] = np.float32("nan")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state, metrics = result.experiment.train_step(
                jax.device_put(broken._replace(params=params), result.experiment.state_shardings),
                result.batch(0),
            )
        assert metrics["nonfinite_count"] == 1
        jax.tree.map(np.testing.assert_array_equal, state.objective, broken.objective)


def test_what_it_keeps_is_saved_and_goes_on_to_the_bit(name, tmp_path):
    result = run(name)
    middle = result.states[1]
    if not middle.params.get("objective") and not jax.tree.leaves(middle.objective):
        return  # nothing of its own beside the towers, whose runs tests/train resumes
    experiment = result.experiment
    state = jax.device_put(middle, experiment.state_shardings)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state_lib.to_save(state))
        restored = checkpointer.restore_latest(state_lib.to_save(experiment.abstract_state))
    state = experiment.with_frozen(restored.state)
    after, _ = experiment.train_step(state, result.batch(1))
    expected, found = (names_of(each) for each in (result.states[2], after))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value, err_msg=key)


@pytest.mark.slow
def test_its_dry_run_and_its_plan(name):
    config = configuration(name)
    assert np.isfinite(dry_run.dry_run(config, batch_size=BATCH)["loss"])
    planned, _, _ = program.of_config(config, jax.devices()[:1], "", program.Cache(None))
    assert planned.memory.peak > 0


def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"unknown option 'nonsense' of objective '{name}'"):
        objectives.from_config([{"name": name, "nonsense": 1}], {})


def test_its_docstring_names_its_source(name):
    kind = objectives.REGISTRY.get(name)
    assert "arXiv" in kind.__doc__ or "arXiv" in (
        __import__(kind.__module__, fromlist=["x"]).__doc__
    )
