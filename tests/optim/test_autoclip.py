"""AutoClip against its published rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import Rule, Step, Tree


def published_rule(percentile: float = 10.0, history_size: int = 10_000) -> Rule:
    """Algorithm 1 of Seetharaman et al. (2020), forgetting what is older than the buffer."""
    history: list[float] = []

    def rule(gradient: Tree, params: Tree) -> Step:
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        history.append(norm)
        bound = np.percentile(history[-history_size:], percentile)
        factor = bound / norm if norm > bound else 1.0
        return Step({name: factor * g for name, g in gradient.items()}, norm, bound, norm > bound)

    return rule


@pytest.mark.parametrize(
    "options", [{}, {"percentile": 60.0, "history_size": 20}, {"percentile": 97.5}]
)
def test_follows_the_published_rule(options: dict) -> None:
    steps = reference.assert_follows(
        optim.autoclip(**options), lambda: published_rule(**options), step_size=0.1
    )
    assert {bool(step.clipped) for step in steps[1:]} == {True, False}


@pytest.mark.parametrize("percentile", [0.0, 12.5, 50.0, 99.9, 100.0])
def test_percentile_of_ten_thousand_norms(percentile: float) -> None:
    """Of a full ring, unordered and with values that occur more than once."""
    norms = np.random.default_rng(0).lognormal(size=10_000).astype(np.float32)
    norms[5000:6000] = norms[:1000]
    tx = optim.autoclip(percentile)
    state = tx.init(jnp.zeros(1))._replace(history=jnp.asarray(norms), count=jnp.int32(123_456))
    _, state = jax.jit(tx.update)(jnp.asarray([2.0]), state)
    norms[123_456 % 10_000] = 2.0
    expected = np.percentile(norms.astype(np.float64), percentile)
    np.testing.assert_allclose(state.threshold, expected, rtol=1e-6)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"autoclip\.percentile=101"):
        optim.autoclip(101)
    with pytest.raises(ValueError, match=r"autoclip\.history_size=0"):
        optim.autoclip(history_size=0)
    with pytest.raises(TypeError, match="static_args='history_size'"):
        jax.jit(lambda size: optim.autoclip(history_size=size).init(jnp.zeros(1)))(5)


def test_the_hundredth_percentile_leaves_every_gradient_as_it_is() -> None:
    """To the bit: the largest norm of the history is at least that of this step."""
    tx = optim.autoclip(100.0, history_size=16)
    gradients = np.random.default_rng(1).lognormal(sigma=2.0, size=(40, 9)).astype(np.float32)

    def step(state, gradient):
        updates, state = tx.update(gradient, state)
        return state, (updates, state.clipped)

    _, (updates, clipped) = jax.jit(
        lambda g: jax.lax.scan(step, tx.init(jnp.zeros(9, jnp.float32)), g)
    )(gradients)
    np.testing.assert_array_equal(updates, gradients)
    assert not np.any(clipped)
