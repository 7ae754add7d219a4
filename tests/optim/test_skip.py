"""``skip_nonfinite`` and ``skip_on_spike``: what is skipped, and that a skip leaves no trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from jaxclip.optim.read_metrics import skipped_steps

PARAMS = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.ones((2, 3))}


def gradient(size: float) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: size * jnp.ones_like(leaf), PARAMS)


def run(tx: optax.GradientTransformation, steps: list[tuple[Any, dict[str, Any]]]) -> Any:
    """Parameters after every step, and the last state."""
    update = jax.jit(optax.with_extra_args_support(tx).update)
    params, state, trajectory = PARAMS, tx.init(PARAMS), []
    for grads, extra in steps:
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        trajectory.append(params)
    return trajectory, state


def inner_chain() -> optax.GradientTransformation:
    """Everything that moves on by itself: momentum, decay, a schedule."""
    return optax.adamw(optax.linear_schedule(1e-2, 1e-3, 10), weight_decay=0.1)


# --- Not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_no_step(bad: float) -> None:
    good = [(gradient(1.0), {}), (gradient(-0.5), {})]
    broken = gradient(1.0)
    broken["b"] = broken["b"].at[1, 2].set(bad)
    plain, expected = run(inner_chain(), [*good, good[0]])
    found, state = run(optim.skip_nonfinite(inner_chain()), [*good, (broken, {}), good[0]])
    jax.tree.map(np.testing.assert_array_equal, found[2], found[1])
    jax.tree.map(np.testing.assert_array_equal, found[3], plain[2])
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, expected)
    assert (int(state.count), int(state.nonfinite_count), int(state.streak)) == (4, 1, 0)


def test_a_clipper_before_adamw_does_not_skip_the_step() -> None:
    """What docs/optim.md says: momentum and decay go on, with a step of about the learning rate."""
    tx = optax.chain(optim.zclip(), optax.adamw(1e-2))
    found, _ = run(tx, [(gradient(1.0), {}), (gradient(np.nan), {})])
    moved = np.abs(np.asarray(found[1]["a"] - found[0]["a"]))
    assert np.all(moved > 5e-3)


def test_a_loss_that_is_not_finite_skips_and_the_streak_counts() -> None:
    tx = optim.skip_nonfinite(optax.sgd(1.0))
    found, state = run(tx, [(gradient(1.0), {"value": jnp.float32(np.nan)})] * 3)
    jax.tree.map(np.testing.assert_array_equal, found[-1], PARAMS)
    assert int(state.streak) == int(state.nonfinite_count) == 3
    _, state = run(tx, [(gradient(1e30), {"value": jnp.float32(2.0)})])
    assert not state.clipped


def test_skip_nonfinite_scans_and_keeps_dtypes() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tx = optim.skip_nonfinite(optax.adamw(1e-2))

    def step(carry: Any, size: jax.Array) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda leaf: (size * jnp.ones_like(leaf)).astype(leaf.dtype), params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), state.clipped

    sizes = jnp.asarray([1.0, np.nan, 1.0, np.inf])
    _, skipped = jax.jit(lambda c: jax.lax.scan(step, c, sizes))((params, tx.init(params)))
    assert skipped.tolist() == [False, True, False, True]


# --- Spikes --------------------------------------------------------------------------------------


def olmo(values: list[float], factor: float, size: int) -> list[bool]:
    """Which steps OLMo-core leaves out, for one of the two values."""
    skipped = []
    for step, value in enumerate(values):
        before = values[max(0, step - size) : step]
        ready = len(before) + 1 >= max(20, size // 2)
        deviation = np.std(before, ddof=1) if len(before) > 1 else np.inf
        skipped.append(bool(ready and abs(value - np.mean(before)) > factor * deviation))
    return skipped


def spiky_run(steps: int = 120) -> tuple[list[float], list[float]]:
    """Norms and losses: noise, single spikes up and down, and a level that changes for good."""
    rng = np.random.default_rng(3)
    norms = 1.0 + 0.1 * rng.normal(size=steps)
    losses = 3.0 + 0.2 * rng.normal(size=steps)
    norms[[70, 71, 72]] = [0.01, 20.0, 5.0]
    losses[[55, 90]] = [9.0, -2.0]
    norms[100:] += 4.0
    single = np.asarray(np.stack([norms, losses]), np.float32).astype(float)
    return single[0].tolist(), single[1].tolist()


@pytest.mark.parametrize(("factor", "size"), [(6.0, 128), (4.0, 24)])
@pytest.mark.parametrize("with_loss", [True, False])
def test_skips_what_olmo_skips(factor: float, size: int, with_loss: bool) -> None:
    norms, losses = spiky_run()
    tx = optim.skip_on_spike(optax.sgd(1.0), factor, size)
    params = jnp.zeros(4)

    def step(state: Any, seen: jax.Array) -> Any:
        extra = {"value": seen[1]} if with_loss else {}
        updates, state = tx.update(jnp.full(4, seen[0] / 2), state, params, **extra)
        return state, (state.clipped, jnp.all(updates == 0), state.threshold)

    seen = jnp.asarray([norms, losses]).T
    state, (skipped, zero, _) = jax.jit(lambda s: jax.lax.scan(step, s, seen))(tx.init(params))
    expected = np.asarray(olmo(norms, factor, size))
    if with_loss:
        expected |= np.asarray(olmo(losses, factor, size))
    np.testing.assert_array_equal(skipped, expected)
    np.testing.assert_array_equal(zero, expected)
    assert int(state.skipped_count) == expected.sum() >= 1
    # A level that has changed for good is taken as it is in the end.
    assert not expected[-1]


def test_a_skipped_spike_leaves_moments_counts_and_schedule_alone() -> None:
    rng = np.random.default_rng(0)
    good = [(gradient(float(size)), {}) for size in 1.0 + 0.1 * rng.normal(size=30)]
    plain, expected = run(inner_chain(), good)
    tx = optim.skip_on_spike(inner_chain(), history_size=32)
    found, state = run(tx, [*good[:25], (gradient(1e4), {}), *good[25:]])
    assert int(state.skipped_count) == 1
    jax.tree.map(np.testing.assert_array_equal, found[25], found[24])
    jax.tree.map(np.testing.assert_array_equal, found[-1], plain[-1])
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, expected)


def test_what_is_not_finite_stays_out_of_the_history() -> None:
    tx = optim.skip_on_spike(optax.sgd(1.0), history_size=20)
    steps = [(gradient(1.0 + 0.01 * (i % 3)), {"value": jnp.float32(1.0)}) for i in range(25)]
    steps[5] = (gradient(np.nan), {"value": jnp.float32(1.0)})
    steps[6] = (gradient(1.0), {"value": jnp.float32(np.inf)})
    _, state = run(tx, steps)
    assert int(state.nonfinite_count) == int(state.skipped_count) == 2
    assert (int(state.norms_seen), int(state.losses_seen)) == (24, 24)
    assert np.all(np.isfinite(state.norms)) and np.isfinite(state.threshold)


@pytest.mark.parametrize("wrap", [optim.skip_nonfinite, optim.skip_on_spike])
def test_skipped_steps_are_those_that_a_schedule_within_does_not_count(wrap: Any) -> None:
    steps = [
        (gradient(1.0), {}),
        (gradient(np.nan), {}),
        (gradient(2.0), {}),
        (gradient(np.inf), {}),
    ]
    _, state = run(wrap(optax.adamw(optax.linear_schedule(1.0, 0.0, 10))), steps)
    counts = [leaf for leaf in jax.tree.leaves(state.inner_state) if leaf.dtype == jnp.int32]
    assert int(skipped_steps(state)) == 2 and {int(count) for count in counts} == {2}
    both = optim.skip_nonfinite(wrap(optax.sgd(1.0)))
    _, state = run(both, steps)
    assert int(skipped_steps(state)) == 2  # what the outer one skips, the inner one has not seen
    assert skipped_steps(optax.adamw(1.0).init(PARAMS)) == 0


def test_equal_values_skip_nothing() -> None:
    _, state = run(optim.skip_on_spike(optax.sgd(1.0)), [(gradient(0.1), {})] * 140)
    assert int(state.skipped_count) == 0


# --- Extra arguments, configuration, errors ------------------------------------------------------


@pytest.mark.parametrize("wrap", [optim.skip_nonfinite, optim.skip_on_spike])
def test_extra_arguments_reach_what_takes_them(wrap: Any) -> None:
    seen = {}

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.update(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = wrap(inner)
    tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, other=2)
    assert seen == {"value": 1.0, "other": 2}
    # SAM takes its own only; plain transformations take none.
    sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), opaque_mode=True)
    of_sam = wrap(sam, extra_args=("grad_fn",))
    for tx, extra in (
        (of_sam, {"grad_fn": lambda p, _: p}),
        (wrap(optax.sgd(0.1)), {"unknown": 1}),
    ):
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, **extra)
        assert np.all(np.isfinite(updates["a"]))


def test_from_config_takes_it_outermost() -> None:
    section = {"name": "spike", "sigma_factor": 4.0, "history_size": 32}
    config = {"name": "adamw", "learning_rate": 1e-3, "clip": "zclip", "sam": {"rho": 0.05}}
    for skip in (section, "spike", "nonfinite"):
        tx = optim.from_config({**config, "skip": skip}, total_steps=10)
        extra = {"value": 1.0, "grad_fn": lambda p, _: p}
        updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra)
        name = "skip_nonfinite" if skip == "nonfinite" else "skip_on_spike"
        assert {f"{name}/clipped", "zclip/clipped"} <= set(optim.monitor(state))
        assert np.any(updates["a"])
    assert state.inner_state is not None
    with pytest.raises(ValueError, match=r"optim\.skip\.name='spikes'; did you mean 'spike'"):
        optim.from_config({**config, "skip": "spikes"}, 10)
    with pytest.raises(ValueError, match=r"optim\.skip\.sigma: .*did you mean 'sigma_factor'"):
        optim.from_config({**config, "skip": {"name": "spike", "sigma": 3}}, 10)


def test_refuses_numbers_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"skip_on_spike\.sigma_factor=0"):
        optim.skip_on_spike(optax.sgd(1.0), sigma_factor=0)
    with pytest.raises(ValueError, match=r"skip_on_spike\.history_size=1"):
        optim.skip_on_spike(optax.sgd(1.0), history_size=1)
