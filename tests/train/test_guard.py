"""Spikes judged inside the step, and the policies that act there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import config as config_lib
from jaxclip import optim
from jaxclip.train import guard as guard_lib
from jaxclip.train import spikes
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import watch as watch_lib

OPTIONS = {"window": 16, "threshold": 4.0, "min_history": 8}


def follow(guard, losses, norms):
    """Judgements of whole curves, and the last state."""

    @jax.jit
    def one(state, item):
        step, loss, norm = item
        judged = guard.judge(state, loss, norm)
        return guard.remember(state, judged, step, loss, norm), judged

    steps = jnp.arange(len(losses))
    return jax.lax.scan(one, guard.init(), (steps, jnp.asarray(losses), jnp.asarray(norms)))


@pytest.fixture(autouse=True, scope="module")
def quick(compilation_cache):
    """Most of the time is compilation: the compiler is told not to optimise."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        with compilation_cache():
            yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    return rng.normal(3, 0.1, 60).astype(np.float32)


def test_planted_spikes_are_found_and_nothing_else(curve):
    losses, norms = curve.copy(), curve[::-1].copy()
    losses[30], norms[40], losses[50], norms[50] = 9.0, 50.0, 9.0, 50.0
    state, judged = follow(guard_lib.Guard(**OPTIONS), losses, norms)
    assert np.flatnonzero(judged.spike).tolist() == [30, 40, 50]
    assert np.asarray(judged.above)[[30, 40, 50]].tolist() == [
        [True, False], [False, True], [True, True],
    ]  # fmt: skip
    assert int(state.spikes) == 3 and int(state.skipped) == 0


def test_the_first_spike_is_judged_as_a_finished_curve_is(curve):
    """Later ones differ: the limit, not the value, enters the history."""
    losses = curve.copy()
    losses[45] = 4.2
    _, judged = follow(guard_lib.Guard(**OPTIONS), losses, curve)
    found = spikes.find_spikes(losses, window=16, threshold=4.0, min_history=8)
    assert np.flatnonzero(judged.spike).tolist() == found.steps.tolist() == [45]
    before = losses[29:45].astype(np.float64)
    np.testing.assert_allclose(judged.mean[45, 0], before.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        judged.limit[45, 0], before.mean() * (1 + 1e-6) + 4 * before.std(), rtol=1e-5
    )


def test_a_huge_spike_does_not_hide_the_next_one(curve):
    losses = curve.copy()
    losses[[30, 33]] = 1e6, 9.0
    _, judged = follow(guard_lib.Guard(**OPTIONS), losses, curve)
    assert np.flatnonzero(judged.spike).tolist() == [30, 33]


def test_a_lasting_rise_is_a_spike_for_some_steps_only(curve):
    losses = np.concatenate([curve, curve + 3])
    _, judged = follow(guard_lib.Guard(**OPTIONS), losses, np.ones_like(losses))
    found = np.flatnonzero(judged.spike)
    assert found[0] == 60 and found[-1] < 60 + 16


def test_values_that_are_not_finite_are_no_spikes_and_no_history(curve):
    losses = curve.copy()
    losses[[20, 30]] = np.nan, np.inf
    state, judged = follow(guard_lib.Guard(**OPTIONS), losses, curve)
    assert not np.any(judged.spike) and int(state.seen) == 58
    assert np.isfinite(state.history).all()


# In the step.


def init(rng):
    return {"w": jax.random.normal(rng, (6,)), "logit_scale": jnp.float32(1.0)}


def gradient(params, state, batch):
    """w moves towards the batch's mean; `times` makes a spike of both loss and gradient."""

    def loss_of(params):
        return batch["times"][0] * jnp.mean((params["w"] - batch["x"]) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(params)
    return (loss, ({}, state.objective)), grads


def batches(count=30, spike_at=20, times=1000.0):
    rng = np.random.default_rng(1)
    for step in range(count):
        factor = times if step == spike_at else 1.0
        yield {"x": rng.normal(size=(8, 6)).astype(np.float32), "times": np.float32([factor])}


def run(actions=None, tx=None, steps=30, **options):
    """States and metrics after each step; None for no guard at all."""
    tx = tx or optax.adamw(0.01)
    guard = None
    if actions is not None:
        guard = guard_lib.Guard(**OPTIONS, actions=actions, **options)
    step = step_lib.make_train_step(gradient, tx, guard=guard, learning_rate=lambda count: 0.01)
    state = state_lib.create_state(
        init, tx, jax.random.key(0), guard_state=guard.init if guard else lambda: None
    )
    states, metrics = [], []
    for batch in batches(steps):
        state, found = step(state, batch)
        states.append(jax.tree.map(np.asarray, state))
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize("actions", [(), ("skip",), ("clip",), ("lower_rate",), ("reset_moments",)])
def test_until_a_spike_nothing_differs(plain, actions):
    states, metrics = run(actions, rate_steps=3)
    assert [m["watch/spike"] for m in metrics] == [0.0] * 20 + [3.0] + [0.0] * 9
    assert metrics[-1]["watch/spike_count"] == 1
    same = len(plain[0]) if not actions else 20
    for ours, theirs in zip(states[:same], plain[0][:same], strict=True):
        np.testing.assert_array_equal(ours.params["w"], theirs.params["w"])
        jax.tree.map(np.testing.assert_array_equal, ours.opt_state, theirs.opt_state)
    if actions:
        assert not np.array_equal(states[-1].params["w"], plain[0][-1].params["w"])


def test_skip_leaves_the_step_out():
    states, metrics = run(("skip",))
    for name in ("params", "opt_state"):
        before, after = (getattr(states[place], name) for place in (19, 20))
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert int(states[20].step) == 21 and int(states[20].guard.skipped) == 1
    assert metrics[20]["nonfinite_count"] == 0
    assert not np.array_equal(states[21].params["w"], states[20].params["w"])


def test_clip_brings_the_gradient_to_the_mean_norm_of_before():
    states, metrics = run(("clip",), tx=optax.sgd(0.01))
    moved = np.linalg.norm(states[20].params["w"] - states[19].params["w"])
    before = np.mean([m["grad_norm"] for m in metrics[4:20]])
    assert moved == pytest.approx(0.01 * before, rel=1e-4)


def test_a_watch_is_told_of_the_clipped_gradient():
    tx = optax.sgd(0.01)
    guard = guard_lib.Guard(**OPTIONS, actions=("clip",))
    numbers = watch_lib.make_tensor_numbers({"optim": {"name": "sgd"}})
    step = step_lib.make_train_step(gradient, tx, guard=guard, watch=numbers)
    state = state_lib.create_state(init, tx, jax.random.key(0), guard_state=guard.init)
    for batch in batches(21):
        state, metrics = step(state, batch)
    gradient_norm, moved = (
        metrics[watch_lib.TENSORS + name][1] for name in ("gradient_norm", "update_norm")
    )
    assert float(gradient_norm) == pytest.approx(100 * float(moved), rel=1e-4)
    assert float(metrics["grad_norm"]) > 100 * float(gradient_norm)


def test_policies_hold_no_copies_of_gradients_or_moments():
    size, tx = 100_000, optax.adamw(0.01)
    batch = {"g": {"w": jnp.zeros(size), "logit_scale": jnp.zeros(())}, "loss": jnp.ones(())}

    def held(actions):
        guard = guard_lib.Guard(**OPTIONS, actions=actions)
        state = state_lib.create_state(
            lambda rng: jax.tree.map(jnp.zeros_like, batch["g"]),
            tx,
            jax.random.key(0),
            guard_state=guard.init,
        )
        step = step_lib.make_train_step(
            lambda params, state, batch: ((batch["loss"], ({}, {})), batch["g"]), tx, guard=guard
        )
        return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes

    assert held(("clip", "lower_rate", "reset_moments")) < held(()) + 4 * size / 2


def test_the_rate_is_lower_for_so_many_steps(plain):
    states, metrics = run(("lower_rate",), tx=optax.sgd(0.01), rate_factor=0.5, rate_steps=3)
    lowered = [m["watch/rate_factor"] for m in metrics]
    assert lowered == [1.0] * 20 + [0.5] * 3 + [1.0] * 7
    assert [round(m["learning_rate"], 6) for m in metrics][19:24] == [
        0.01,
        0.005,
        0.005,
        0.005,
        0.01,
    ]
    unhindered, _ = run((), tx=optax.sgd(0.01))
    half, whole = (s[20].params["w"] - s[19].params["w"] for s in (states, unhindered))
    np.testing.assert_allclose(half, 0.5 * whole, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    ["stable_adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("adamw", "muon", "sgd"))],
)
def test_moments_begin_anew_with_their_counts(name):
    section = {"name": name, "learning_rate": 0.01, "clip": {"name": "zclip"}}
    section |= {"schedule": {"name": "cosine", "warmup_steps": 2}}
    if name == "sgd":
        section["momentum"] = 0.9
    tx = optim.from_config(section, 30)
    states, _ = run(("reset_moments",), tx=tx)
    fresh = tx.init(states[0].params)
    assert guard_lib.has_moments(fresh)
    kept, new = 0, 0
    flat = jax.tree_util.tree_leaves_with_path(states[20].opt_state)
    for (path, leaf), begun in zip(flat, jax.tree.leaves(fresh), strict=True):
        place = jax.tree_util.keystr(path)
        if any(f".{part}" in place for part in ("mu", "nu", "trace")):
            np.testing.assert_array_equal(leaf, begun, err_msg=place)
            new += 1
        elif "ScheduleState" in place or (leaf.ndim == 0 and int(leaf) == 21):
            kept += 1  # the schedule and the clipper go on
    assert new and kept
    w = [states[place].params["w"] for place in (20, 21)]
    assert np.isfinite(w).all() and 0 < np.abs(w[1] - w[0]).max() < 0.1


def test_a_stop_changes_no_decision():
    """All that decisions depend on is in the state."""
    guard = guard_lib.Guard(**OPTIONS, actions=("skip",))
    tx = optax.adamw(0.01)
    step = step_lib.make_train_step(gradient, tx, guard=guard)
    whole, _ = run(("skip",))
    state = jax.tree.map(jnp.asarray, whole[14])
    for batch in list(batches())[15:]:
        state, _ = step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), whole[-1])


# In a configuration.


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("on_spike.actions=skp", "unknown action 'skp'; did you mean 'skip'?"),
        ("on_spike.actions=skip|skip", "has 'skip' twice"),
        ("on_spike.actions=['rewind', 'clip']", "'rewind' undoes the step"),
        ("watch.min_history=2000", "min_history=2000 is more than watch.window=1000"),
        ("on_spike.rate_factor=2", "on_spike.rate_factor=2.0 must be at most 1"),
        ("skip_batches=[[3, 2]]", "whole numbers of batches"),
        ("skip_batches=[[1, 4], [4, 5]]", "ascending and apart"),
        ("on_spike.rewind=3", "unknown config key 'on_spike.rewind'; did you mean"),
    ],
)
def test_mistakes_are_told_in_a_line(override, message):
    with pytest.raises(ValueError, match=r".+") as error:
        config_lib.resolve({}, [override])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rewind_needs_checkpoints():
    with pytest.raises(ValueError, match=r"checkpoint.every_steps=0; use 100"):
        config_lib.resolve({}, ["on_spike.actions=rewind", "checkpoint.every_steps=0"])


def test_moments_can_be_reset_only_where_there_are_some(tiny_config):
    from jaxclip.train import setup

    config = tiny_config("on_spike.actions=reset_moments", "optim.name=sgd", "optim.weight_decay=0")
    with pytest.raises(ValueError, match=r"optim.name='sgd' has no moments that it can reset"):
        setup.build(config)
