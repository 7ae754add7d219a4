"""ACClip against its published rule."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.99,
    eps: float = 1e-5,
    alpha: float = 2.0,
    weight_decay: float = 0.0,
) -> Rule:
    """Algorithm 2 of Zhang et al. (2020)."""
    mu, nu = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))

    def rule(gradient: Tree, params: Tree) -> Step:
        update, ratios = {}, {}
        for name, g in gradient.items():
            mu[name] = b1 * mu[name] + (1 - b1) * g
            nu[name] = b2 * nu[name] + (1 - b2) * np.abs(g) ** alpha
            tau, size = nu[name] ** (1 / alpha), np.abs(mu[name])
            clipped = np.minimum(tau / (size + eps), 1.0) * mu[name]
            update[name] = -learning_rate * (clipped + weight_decay * params[name])
            ratios[name] = np.max(size / tau)
        norm = reference.per_tensor(ratios.get)
        return Step(update, norm, np.ones_like(norm), norm > 1)

    return rule


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1.0, "weight_decay": 0.1}, {"alpha": 1.4, "b1": 0.5, "eps": 1e-3}]
)
def test_follows_the_published_rule(options: dict) -> None:
    reference.assert_follows(
        optim.acclip(0.1, **options),
        lambda: published_rule(0.1, **options),
        float32=3e-5,
        slack=1.0,
    )


def test_a_spike_of_one_element_moves_it_alone_and_no_further_than_its_threshold() -> None:
    tx = optim.scale_by_acclip(eps=0.0)
    params = jnp.zeros(3)
    state = tx.init(params)
    for _ in range(500):
        update, state = tx.update(jnp.ones(3), state)
    np.testing.assert_allclose(update, 1.0, rtol=0.01)
    update, state = tx.update(jnp.asarray([1e4, 1.0, 1.0]), state)
    # Momentum alone would be 1000; tau is sqrt(0.99 + 0.01 * 1e8).
    np.testing.assert_allclose(update, [1000.0, 1.0, 1.0], rtol=0.01)
    one = optim.scale_by_acclip(eps=0.0, alpha=1.0)
    state = one.init(params)
    for size in (*[1.0] * 500, 1e4):
        update, state = one.update(jnp.asarray([size, 1.0, 1.0]), state)
    # With alpha = 1 tau is 0.99 + 0.01 * 1e4: a tenth of the momentum.
    np.testing.assert_allclose(update, [101.0, 1.0, 1.0], rtol=0.01)
    assert state.clipped.all()


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"acclip\.alpha=3"):
        optim.acclip(0.1, alpha=3.0)
    with pytest.raises(ValueError, match=r"acclip\.b1=1"):
        optim.acclip(0.1, b1=1.0)
    with pytest.raises(TypeError, match="complex"):
        optim.acclip(0.1).init(jnp.ones(2, jnp.complex64))
