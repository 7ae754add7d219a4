"""Stable-SPAM against its published rule, and its parts against themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    theta: float = 0.999,
    gamma1: float = 0.7,
    gamma2: float = 0.9,
    reset_interval: int = 1000,
) -> Rule:
    """The paper's algorithm (Huang et al., 2025): M, a and b keep their own count."""
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    average_max, average_norm, average_square = ({name: 0.0 for name in SHAPES} for _ in range(3))
    t = adam_count = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t, adam_count
        t += 1
        adam_count += 1
        if t % reset_interval == 0:
            adam_count = 1
            for name, shape in SHAPES.items():
                m[name], v[name] = np.zeros(shape), np.zeros(shape)
        update, largest, bound = {}, {}, {}
        for name, g in gradient.items():
            largest[name] = s = np.abs(g).max()
            average_max[name] = theta * average_max[name] + (1 - theta) * s
            bound[name] = average_max[name] / (1 - theta**t)
            above = np.abs(g) > bound[name]
            g = np.where(above, g * bound[name] / s if s else g, g)

            n = np.sqrt((g**2).sum())
            average_norm[name] = gamma1 * average_norm[name] + (1 - gamma1) * n
            average_square[name] = gamma2 * average_square[name] + (1 - gamma2) * n**2
            if n > 0:
                root = np.sqrt(average_square[name] / (1 - gamma2**t))
                g = g / n * (average_norm[name] / (1 - gamma1**t)) / (root + eps)

            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            m_hat, v_hat = m[name] / (1 - b1**adam_count), v[name] / (1 - b2**adam_count)
            decayed = params[name] * (1 - learning_rate * weight_decay)
            moved = decayed - learning_rate * m_hat / (np.sqrt(v_hat) + eps)
            update[name] = moved - params[name]
        return Step(
            update,
            norm=reference.per_tensor(largest.get),
            threshold=reference.per_tensor(bound.get),
            clipped=reference.per_tensor(lambda name: largest[name] > bound[name]),
        )

    return rule


def test_follows_the_published_rule() -> None:
    steps = reference.assert_follows(
        optim.stable_spam(1e-2, weight_decay=0.1), lambda: published_rule(1e-2, weight_decay=0.1)
    )
    clipped = np.stack([step.clipped for step in steps])
    assert clipped.any(0).all() and (~clipped).any(0).all()


def test_follows_the_published_rule_through_resets() -> None:
    options = {"reset_interval": 40, "theta": 0.95, "gamma1": 0.6, "gamma2": 0.8}
    options |= {"b1": 0.8, "b2": 0.95, "eps": 1e-3}
    reference.assert_follows(
        optim.stable_spam(1e-2, **options), lambda: published_rule(1e-2, **options)
    )


def test_is_adaclip_adagn_and_adam_in_a_row() -> None:
    whole = optim.scale_by_stable_spam(theta=0.9)
    parts = optax.chain(optim.adaclip(theta=0.9), optim.adagn(), optax.scale_by_adam())
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), reference.initial_params())
    states = whole.init(params), parts.init(params)
    step = jax.jit(lambda g, states: (whole.update(g, states[0]), parts.update(g, states[1])))
    for gradient in reference.spiky_gradients(60):
        gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), gradient)
        (mine, first), (theirs, second) = step(gradient, states)
        states = first, second
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-4, 1e-5), mine, theirs)
        for field in ("norm", "threshold", "clipped"):
            np.testing.assert_allclose(
                getattr(first, field), getattr(second[0], field), rtol=1e-6, atol=1e-9
            )


def test_clipping_stays_on_after_a_reset() -> None:
    """In the authors' code it is off, since a sum over all updates is corrected as over one."""
    tx = optim.scale_by_stable_spam(reset_interval=50)
    gradients = jnp.ones((51, 4)).at[50, 0].set(100.0)
    state, _ = jax.lax.scan(
        lambda state, gradient: (tx.update(gradient, state)[1], None),
        tx.init(gradients[0]),
        gradients,
    )
    assert state.clipped and state.threshold < 4


def test_moments_have_the_dtypes_asked_for() -> None:
    params = jnp.ones((3, 2), jnp.bfloat16)
    for mu_dtype, wanted in ((None, jnp.float32), ("bfloat16", jnp.bfloat16)):
        state = optim.scale_by_stable_spam(mu_dtype=mu_dtype).init(params)
        assert (state.mu.dtype, state.nu.dtype) == (wanted, jnp.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"b1": 1.0},
        {"b2": 1.5},
        {"eps": -1.0},
        {"weight_decay": -0.1},
        {"theta": 1.0},
        {"gamma1": -0.1},
        {"gamma2": 1.0},
        {"reset_interval": 0},
    ],
    ids=str,
)
def test_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"stable_spam\.{next(iter(options))}="):
        optim.stable_spam(1e-3, **options)
