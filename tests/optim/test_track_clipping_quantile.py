"""Quantile tracking against its published rule, its noise, and what it is for: a quantile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def per_example_gradients() -> list[Tree]:
    """Three examples a step, each with spikes of its own."""
    runs = zip(*(reference.spiky_gradients(seed=seed) for seed in range(3)), strict=True)
    return [{name: np.stack([g[name] for g in examples]) for name in SHAPES} for examples in runs]


def published_rule(target: float, adaptation_rate: float, initial_norm: float) -> Rule:
    """Algorithm 1 of Andrew et al. (2021), without noise."""
    bound = initial_norm

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal bound
        flat = np.concatenate([g.reshape(3, -1) for g in gradient.values()], axis=1)
        norms = np.linalg.norm(flat, axis=1)
        factors = np.where(norms > bound, bound / np.where(norms > 0, norms, 1), 1.0)
        update = {name: np.tensordot(factors, g, axes=1) / 3 for name, g in gradient.items()}
        step = Step(update, norms.max(), bound, norms.max() > bound)
        bound = bound * np.exp(-adaptation_rate * (np.mean(norms <= bound) - target))
        return step

    return rule


@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.5, "adaptation_rate": 0.2, "initial_norm": 0.1},
        {"target": 0.8, "adaptation_rate": 0.05, "initial_norm": 2.0},
    ],
)
def test_follows_the_published_rule(options: dict) -> None:
    steps = reference.assert_follows(
        optim.track_clipping_quantile(**options),
        lambda: published_rule(**options),
        per_example_gradients(),
        step_size=0.1,
    )
    assert {bool(step.clipped) for step in steps} == {True, False}


def test_finds_the_quantile() -> None:
    """Norms uniform in (0, 10): seven of ten are under 7."""
    tx = optim.track_clipping_quantile(target=0.7, adaptation_rate=0.05)
    norms = np.random.default_rng(0).uniform(0, 10, (1500, 50, 1)).astype(np.float32)
    run = jax.jit(lambda s, g: jax.lax.scan(lambda s, g: (tx.update(g, s)[1], s.clip_norm), s, g))
    _, bounds = run(tx.init(jnp.zeros(1)), norms)
    assert abs(np.asarray(bounds)[-500:].mean() - 7.0) < 0.2


def test_noise_on_gradients_and_count_has_the_promised_size() -> None:
    examples, z = 100, 4.0
    tx = optim.track_clipping_quantile(noise_multiplier=z, seed=5, initial_norm=2.0)
    zeros = jnp.zeros((examples, 20_000))
    updates, _ = tx.update(zeros, tx.init(zeros[0]))
    of_gradients = (z**-2 - (2 * examples / 20) ** -2) ** -0.5
    np.testing.assert_allclose(np.std(updates), of_gradients * 2.0 / examples, rtol=0.03)
    small = jnp.zeros((examples, 1))
    run = jax.jit(
        lambda s: jax.lax.scan(
            lambda s, _: (tx.update(small, s)[1]._replace(clip_norm=s.clip_norm), s.fraction),
            s,
            length=3000,
        )
    )
    _, fractions = run(tx.init(small[0]))
    np.testing.assert_allclose(np.std(fractions[1:]), 1 / 20, rtol=0.06)
    assert abs(np.mean(fractions[1:]) - 1.0) < 0.005


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"track_clipping_quantile\.target=1\.2"):
        optim.track_clipping_quantile(target=1.2)
    tx = optim.track_clipping_quantile(noise_multiplier=1.0, seed=0)
    with pytest.raises(ValueError, match=r"noise_multiplier=1\.0 must be < 0\.4"):
        tx.update(jnp.zeros((4, 2)), tx.init(jnp.zeros(2)))


def test_noise_needs_a_seed_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"track_clipping_quantile\.seed is required"):
        optim.track_clipping_quantile(noise_multiplier=1.0)
    # A key will do, and is what the integer stands for.
    gradients = jnp.zeros((40, 3))
    draws = []
    for seed in (7, jax.random.key(7)):
        tx = optim.track_clipping_quantile(noise_multiplier=1.0, seed=seed)
        draws.append(tx.update(gradients, tx.init(gradients[0]))[0])
    np.testing.assert_array_equal(*draws)
    assert np.all(np.abs(draws[0]) > 0)


def test_its_rate_does_not_hide_the_learning_rate() -> None:
    def make(learning_rate: float, adaptation_rate: float) -> optax.GradientTransformation:
        quantile = optax.inject_hyperparams(
            optim.track_clipping_quantile, static_args=("initial_norm", "noise_multiplier")
        )(adaptation_rate=adaptation_rate)
        return optax.chain(quantile, optax.inject_hyperparams(optax.sgd)(learning_rate))

    state = make(0.5, 0.25).init(jnp.zeros(2))
    assert float(optax.tree_utils.tree_get(state, "learning_rate")) == 0.5
    assert float(optax.tree_utils.tree_get(state, "adaptation_rate")) == 0.25


def test_the_old_name_of_its_rate_still_works() -> None:
    gradients = jnp.asarray([[4.0], [3.0], [0.5]])
    with pytest.warns(DeprecationWarning, match="adaptation_rate"):
        old = optim.track_clipping_quantile(learning_rate=0.7)
    new = optim.track_clipping_quantile(adaptation_rate=0.7)
    bounds = [tx.update(gradients, tx.init(jnp.zeros(1)))[1].clip_norm for tx in (old, new)]
    assert bounds[0] == bounds[1] != 0.1
