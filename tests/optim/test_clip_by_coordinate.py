"""Coordinate clipping against NumPy's quantile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import Rule, Step, Tree


def published_rule(fraction: float = 0.1) -> Rule:
    """Pan & Li (2023): the largest coordinates of each tensor at the threshold's value."""

    def rule(gradient: Tree, params: Tree) -> Step:
        tau = {name: np.quantile(np.abs(g), 1 - fraction) for name, g in gradient.items()}
        largest = {name: np.abs(g).max() for name, g in gradient.items()}
        return Step(
            {name: np.clip(g, -tau[name], tau[name]) for name, g in gradient.items()},
            reference.per_tensor(largest.get),
            reference.per_tensor(tau.get),
            reference.per_tensor(lambda name: largest[name] > tau[name]),
        )

    return rule


@pytest.mark.parametrize("fraction", [0.1, 0.37, 1.0])
def test_follows_the_published_rule(fraction: float) -> None:
    reference.assert_follows(
        optim.clip_by_coordinate(fraction), lambda: published_rule(fraction), step_size=0.1
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_keeps_the_fraction_of_a_large_tensor(dtype: jnp.dtype) -> None:
    values = np.random.default_rng(0).standard_cauchy(10_001)
    gradient = jnp.asarray(np.clip(values, -1e4, 1e4), dtype)
    updates, state = jax.jit(optim.clip_by_coordinate(0.25).update)(
        gradient, optim.clip_by_coordinate(0.25).init(gradient)
    )
    tau = np.quantile(np.abs(np.asarray(gradient, np.float64)), 0.75)
    np.testing.assert_allclose(state.threshold[0], tau, rtol=1e-6)
    assert np.mean(np.abs(np.asarray(updates, np.float64)) < tau * 0.995) <= 0.75
    small = np.abs(np.asarray(gradient, np.float64)) < tau
    np.testing.assert_array_equal(np.asarray(updates)[small], np.asarray(gradient)[small])


def test_may_follow_the_optimizer() -> None:
    gradient = jnp.asarray([1.0, 1.0, 1.0, 100.0])
    tx = optax.chain(optax.trace(0.9), optim.clip_by_coordinate(1 / 3), optax.scale(-0.1))
    updates, _ = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(updates, [-0.1] * 4, rtol=1e-6)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"clip_by_coordinate\.fraction=1\.1"):
        optim.clip_by_coordinate(1.1)
