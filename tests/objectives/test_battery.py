"""What holds for every objective of the registry; a new one joins by existing.

Each is trained for two steps on one device and, cut into four micro-batches, on eight. As many as
can go together are terms of one run (tests/objectives/battery.py), of which the tests look at one
term each; `-m slow` asks the same of every objective alone.
"""

import copy
import sys
import tempfile
import warnings

import jax
import numpy as np
import pytest

from jaxclip import objectives
from jaxclip.plan import program
from jaxclip.train import dry_run
from jaxclip.train import state as state_lib
from jaxclip.train.checkpoint import Checkpointer
from tests.objectives import battery
from tests.objectives.battery import named_leaves, run

NAMES = objectives.REGISTRY.names()


@pytest.fixture(scope="module", autouse=True)
def _forget_runs():
    yield
    run.cache_clear()
    battery.complaints.cache_clear()


def train(names):
    """Finite, the loss is the terms', own parameters are trained, the step is compiled once."""
    result = run(names)
    for metrics in result.metrics:
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        mean = np.mean([metrics[f"{name}/loss"] for name in names])
        assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
    first, _, last = (named_leaves(state.params) for state in result.states)
    changed = {key for key in first if not np.array_equal(first[key], last[key])}
    own = {key for key in first if key.startswith("objective/")}
    assert own <= changed, f"never trained: {own - changed}"
    assert any(key.startswith("image/") for key in changed)
    assert result.experiment.train_step._cache_size() == 1


def are_exact(names):
    """Four micro-batches on eight devices give what one device gives on the whole batch."""
    whole, cut = run(names), run(names, 8, 4)
    for name in names:
        key = f"{name}/loss"
        np.testing.assert_allclose(cut.metrics[0][key], whole.metrics[0][key], 2e-5, err_msg=key)
    for key, value in whole.metrics[0].items():
        np.testing.assert_allclose(cut.metrics[0][key], value, 1e-3, 1e-4, err_msg=key)
    start = named_leaves(whole.states[0].params)
    # With SGD at rate 1 the change is the gradient.
    expected, found = (
        {key: value - start[key] for key, value in named_leaves(r.states[1].params).items()}
        for r in (whole, cut)
    )
    for name in ("", *names):  # own parameters to the scale of their own gradients
        begins = f"objective/{name}/" if name else ""
        own = [k for k in expected if k.startswith(begins) and (name or "objective/" not in k)]
        largest = max((np.abs(expected[key]).max() for key in own), default=0.0)
        for key in own:
            # Each step rounds the parameter: where gradients are small, that is what differs.
            atol = 5e-5 * largest + np.spacing(np.abs(start[key]).max())
            np.testing.assert_allclose(found[key], expected[key], atol=atol, err_msg=key)
    ours, theirs = (named_leaves(r.states[1].objective) for r in (whole, cut))
    for key, state in ours.items():
        np.testing.assert_allclose(theirs[key], state, rtol=1e-4, atol=1e-6, err_msg=key)


def keep_their_state(names):
    """State keeps its form, and a step that is not finite leaves it as it was."""
    result = run(names)
    before, _, after = (named_leaves(state.objective) for state in result.states)
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


def go_on_to_the_bit(names):
    """What they keep is saved, and the step after it is the one that would have been."""
    result = run(names)
    middle = result.states[1]
    if not middle.params.get("objective") and not jax.tree.leaves(middle.objective):
        return  # nothing of its own beside the towers, whose runs tests/train resumes
    experiment = result.experiment
    state = jax.device_put(middle, experiment.state_shardings)
    with tempfile.TemporaryDirectory() as folder, Checkpointer(folder) as checkpointer:
        checkpointer.save(1, state_lib.to_save(state))
        restored = checkpointer.restore_latest(state_lib.to_save(experiment.abstract_state))
    state = experiment.with_frozen(restored.state)
    after, _ = experiment.train_step(state, result.batch(1))
    expected, found = (named_leaves(each) for each in (result.states[2], after))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[key]), value, err_msg=key)


CHECKS = (train, are_exact, keep_their_state, go_on_to_the_bit)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", sorted(set(NAMES) - battery.ALONE))
def test_together(name, check):
    found = battery.complaints(check, battery.group_of(name))
    if name in found:
        raise found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_alone(name):
    for check in CHECKS:
        check((name,))
    run.cache_clear()
    jax.clear_caches()


def test_a_failure_names_the_objective():
    def check(names):
        assert "slip" not in names

    found = battery.complaints(check, tuple(NAMES))
    assert list(found) == ["slip"]


def test_every_objective_is_in_one_group():
    together = [name for names in battery.groups() for name in names]
    assert sorted([*together, *battery.ALONE]) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_dry_run_and_its_plan(name):
    config = battery.configuration([name])
    assert np.isfinite(dry_run.dry_run(config, batch_size=battery.BATCH)["loss"])
    planned, _, _ = program.of_config(config, jax.devices()[:1], "", program.Cache(None))
    assert planned.memory.peak > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"unknown option 'nonsense' of objective '{name}'"):
        objectives.from_config([{"name": name, "nonsense": 1}], {})


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_names_its_source(name):
    kind = objectives.REGISTRY.get(name)
    words = f"{kind.__doc__} {sys.modules[kind.__module__].__doc__}"
    assert "arXiv" in words, f"name the paper, arXiv:1234.56789, in the docstring of {name}"
