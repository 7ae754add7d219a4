"""AdaGC against its published rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(
    lambda_abs: float = 1.0, lambda_rel: float = 1.05, beta: float = 0.98, warmup_steps: int = 100
) -> Rule:
    """Algorithm 1 of Wang et al. (2025), but that a norm of zero does not enter the minimum."""
    gamma = dict.fromkeys(SHAPES, np.inf)
    t = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t
        t += 1
        norms = {name: np.linalg.norm(g) for name, g in gradient.items()}
        total = np.sqrt(sum(norm**2 for norm in norms.values()))
        update, bounds, clipped = {}, {}, {}
        for name, g in gradient.items():
            norm = norms[name]
            if t < warmup_steps:
                factor = min(1.0, lambda_abs / total) if total else 1.0
                bounds[name] = lambda_abs * norm / total if total else lambda_abs
                clipped[name] = total > lambda_abs
            else:
                bounds[name] = lambda_rel * gamma[name]
                clipped[name] = norm > bounds[name]
                factor = min(1.0, bounds[name] / norm) if norm else 1.0
            update[name] = factor * g
            if t >= warmup_steps:
                gamma[name] = beta * gamma[name] + (1 - beta) * factor * norm
            elif norm > 0:
                gamma[name] = min(gamma[name], factor * norm)
        return Step(*[update, *(reference.per_tensor(x.get) for x in (norms, bounds, clipped))])

    return rule


@pytest.mark.parametrize(
    "options", [{}, {"lambda_abs": 0.7, "lambda_rel": 1.5, "beta": 0.9, "warmup_steps": 8}]
)
def test_follows_the_published_rule(options: dict) -> None:
    steps = reference.assert_follows(
        optim.adagc(**options), lambda: published_rule(**options), step_size=0.1
    )
    clipped = np.stack([step.clipped for step in steps[options.get("warmup_steps", 100) :]])
    assert clipped.any(0).all()
    # As published the average starts at the smallest norm of the warm-up and grows by a tenth of a
    # per cent an update: by default everything is clipped for some hundred steps.
    assert not options or (~clipped).any(0).all()


def test_a_tensor_without_gradient_at_first_is_not_held_still_for_ever() -> None:
    """As published, the zero becomes the average, and every later gradient is clipped to zero."""
    tx = optim.adagc(warmup_steps=3)
    params = {"late": jnp.zeros(2), "other": jnp.zeros(2)}
    state, step = tx.init(params), jax.jit(tx.update)
    for count in range(8):
        late = jnp.full(2, 0.3 if count >= 5 else 0.0)
        updates, state = step({"late": late, "other": jnp.full(2, 0.3)}, state)
    np.testing.assert_allclose(updates["late"], late, rtol=1e-6)


def test_refuses_what_makes_no_sense() -> None:
    for name, value in {"lambda_abs": 0.0, "lambda_rel": -1.0, "beta": 2.0}.items():
        with pytest.raises(ValueError, match=rf"adagc\.{name}={value}"):
            optim.adagc(**{name: value})
    state = optim.adagc().init({"a": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"2 tensors, but the state was initialised for 1"):
        optim.adagc().update({"a": jnp.zeros(2), "b": jnp.zeros(2)}, state)


def test_global_scope_is_the_rule_for_one_tensor_made_of_all() -> None:
    """The rule per tensor, given all elements in one tensor, sees the same norms."""
    options: dict[str, Any] = {"warmup_steps": 4, "lambda_abs": 0.5}
    whole, one = optim.adagc(scope="global", **options), optim.adagc(**options)
    rng = np.random.default_rng(0)
    state, other = whole.init({"a": jnp.zeros(3), "b": jnp.zeros(2)}), one.init(jnp.zeros(5))
    for step in range(12):
        values = jnp.asarray((30.0 if step == 8 else 1.0) * rng.normal(size=5), jnp.float32)
        update, state = whole.update({"a": values[:3], "b": values[3:]}, state)
        wanted, other = one.update(values, other)
        found = jnp.concatenate([update["a"], update["b"]])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        np.testing.assert_allclose(state.threshold, other.threshold[0], rtol=1e-5)
    assert state.gamma.shape == state.norm.shape == ()
    with pytest.raises(ValueError, match=r"adagc\.scope='layer'; use one of tensor, global"):
        optim.adagc(scope="layer")
