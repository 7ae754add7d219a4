"""ZClip against its published rule, in every mode."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import Rule, Step, Tree


def published_rule(
    alpha: float = 0.97,
    z_threshold: float = 2.5,
    max_norm: float | None = 1.0,
    eps: float = 1e-6,
    warmup_steps: int = 25,
    mode: str = "zscore",
    clip_option: str = "adaptive_scaling",
    clip_factor: float = 1.0,
    skip_update_on_spike: bool = False,
) -> Rule:
    """Kumar et al. (2025), with the warm-up and the constants of their code."""
    collected: list[float] = []
    mean = variance = 0.0

    def adaptive(norm: float) -> float | None:
        deviation = np.sqrt(variance)
        if mode == "percentile":
            bound = mean + z_threshold * deviation
            return bound if norm > bound else None
        z = (norm - mean) / (deviation + eps)
        if z <= z_threshold:
            return None
        if clip_option == "mean":
            return mean
        return clip_factor * (mean + z_threshold * deviation / (z / z_threshold))

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal mean, variance
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        threshold = None
        if len(collected) < warmup_steps:
            collected.append(norm)
            if len(collected) == warmup_steps:
                mean, variance = np.mean(collected), np.var(collected)
        else:
            threshold = adaptive(norm)
            if threshold is None or not skip_update_on_spike:
                fed = norm if threshold is None else threshold
                mean = alpha * mean + (1 - alpha) * fed
                variance = alpha * variance + (1 - alpha) * (fed - mean) ** 2
        bound = min(norm if threshold is None else threshold, max_norm or np.inf)
        factor = bound / (norm + 1e-6) if norm > bound else 1.0
        update = {name: factor * g for name, g in gradient.items()}
        return Step(update, norm, bound, norm > bound)

    return rule


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_norm": None, "alpha": 0.9, "warmup_steps": 10, "clip_factor": 0.8},
        {"max_norm": None, "clip_option": "mean"},
        {"max_norm": 1.6, "mode": "percentile", "z_threshold": 1.5, "eps": 1e-3},
        {"max_norm": None, "skip_update_on_spike": True},
    ],
    ids=["default", "adaptive", "mean", "percentile", "skip"],
)
def test_follows_the_published_rule(options: dict) -> None:
    steps = reference.assert_follows(
        optim.zclip(**options), lambda: published_rule(**options), step_size=0.1
    )
    after_warmup = steps[options.get("warmup_steps", 25) :]
    assert {bool(step.clipped) for step in after_warmup} == {True, False}


def test_a_nan_does_not_poison_the_averages() -> None:
    """The authors' code keeps a NaN in its averages for ever, after which nothing is clipped."""
    gradients = reference.spiky_gradients(40)
    tx = optim.zclip(warmup_steps=5)
    state, update = tx.init(gradients[0]), jax.jit(tx.update)
    for step, gradient in enumerate(gradients):
        if step == 20:
            gradient = {name: np.full_like(value, np.nan) for name, value in gradient.items()}
        _, state = update({n: v.astype(np.float32) for n, v in gradient.items()}, state)
    assert np.isfinite(state.mean) and np.isfinite(state.variance)
    assert state.count == 40 and state.nonfinite_count == 1


LOCKING = {
    "adaptive": {},
    "mean": {"clip_option": "mean"},
    "skip": {"skip_update_on_spike": True},
}


def follow_norms(norms: np.ndarray, **options: Any) -> optim.ZclipState:
    """States after every step of gradients of these norms, stacked."""
    tx = optim.zclip(max_norm=None, warmup_steps=10, **options)

    def step(state: optim.ZclipState, norm: jax.Array) -> tuple:
        _, state = tx.update(norm, state)
        return state, state

    return jax.jit(lambda: jax.lax.scan(step, tx.init(jnp.zeros(())), jnp.float32(norms))[1])()


@pytest.mark.parametrize("name", LOCKING)
def test_lets_go_where_norms_rise_for_good(name: str) -> None:
    """As published it clips for ever, here until some 50 steps after ``release_after``."""
    rng = np.random.default_rng(0)
    norms = np.repeat([1.0, 2.0], [50, 400]) * (1 + 0.05 * rng.normal(size=450))
    published = follow_norms(norms, release_after=None, **LOCKING[name])
    assert np.all(published.clipped[50:]) and published.streak[-1] == 400
    assert published.threshold[-1] < 1.3
    released = follow_norms(norms, release_after=60, **LOCKING[name])
    # Two programs: rounding may differ.
    np.testing.assert_allclose(released.threshold[:110], published.threshold[:110], rtol=1e-5)
    assert np.mean(released.clipped[200:]) < 0.1
    np.testing.assert_allclose(released.mean[-1], 2.0, rtol=0.1)
    assert released.streak.max() >= 60


def test_spikes_shorter_than_release_after_are_clipped_as_published() -> None:
    norms = 1 + 0.05 * np.random.default_rng(1).normal(size=200)
    norms[60:150] = 10.0
    states = [follow_norms(norms, release_after=n) for n in (None, 100)]
    # Two programs: rounding may differ.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *states)
    assert np.all(states[0].clipped[60:150]) and states[0].threshold[60:150].max() < 1.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "z-score"}, "zclip.mode='z-score'; use one of zscore, percentile"),
        ({"clip_option": "median"}, "clip_option='median'"),
        ({"alpha": 1.5}, "zclip.alpha=1.5 must be >= 0 and <= 1"),
        ({"max_norm": 0.0}, "zclip.max_norm=0.0 must be > 0"),
        ({"warmup_steps": 0}, "zclip.warmup_steps=0"),
        ({"warmup_steps": 2.5}, "zclip.warmup_steps=2.5 must be an integer"),
        ({"release_after": 0}, "zclip.release_after=0 must be >= 1"),
    ],
)
def test_refuses_what_makes_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        optim.zclip(**options)
