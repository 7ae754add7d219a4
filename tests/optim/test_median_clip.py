"""Median clipping against its published rule, and what it is for: a median."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(tau: float, kind: str) -> Rule:
    """Schaipp et al. (2024): the estimate moves by the clipped innovation."""
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}

    def rule(gradient: Tree, params: Tree) -> Step:
        innovation = {name: g - m[name] for name, g in gradient.items()}
        if kind == "vector":
            norm = np.sqrt(sum(np.sum(x**2) for x in innovation.values()))
            bound: np.ndarray | float = tau
            moves = {name: x * min(1.0, tau / norm) for name, x in innovation.items()}
        else:
            norm = reference.per_tensor(lambda name: np.abs(innovation[name]).max())
            bound = np.full(len(SHAPES), tau)
            moves = {name: np.clip(x, -tau, tau) for name, x in innovation.items()}
        for name in SHAPES:
            m[name] = m[name] + moves[name]
        return Step(dict(m), norm, bound, norm > tau)

    return rule


@pytest.mark.parametrize(("tau", "kind"), [(0.05, "component"), (0.4, "vector")])
def test_follows_the_published_rule(tau: float, kind: str) -> None:
    reference.assert_follows(
        optim.median_clip(tau, kind), lambda: published_rule(tau, kind), step_size=0.1, slack=1.0
    )


def test_estimates_the_median_not_the_mean() -> None:
    """Nine gradients of ten are 1, one is 1000: the mean is 100.9, the median 1."""
    tx = optim.median_clip(0.01)
    gradients = jnp.where(jnp.arange(2000) % 10 == 9, 1000.0, 1.0)[:, None]
    run = jax.jit(lambda s, g: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], s, g))
    _, updates = run(tx.init(jnp.zeros(1)), gradients)
    assert abs(np.asarray(updates)[-100:].mean() - 1.0) < 0.02


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="kind='coordinate'; use one of component, vector"):
        optim.median_clip(0.1, "coordinate")
    with pytest.raises(ValueError, match=r"median_clip\.tau=0"):
        optim.median_clip(0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tensor_that_is_not_finite_keeps_its_estimate(dtype: Any) -> None:
    """The norm says which: NaN if there is any, whatever its sign and place, else infinity."""
    nan, inf = jnp.nan, jnp.inf
    cases = [  # gradient, norm of what it is from the estimate [0.5, -0.5], and the next estimate
        ([nan, 3], nan, None),
        ([3, -nan], nan, None),
        ([inf, nan], nan, None),
        ([nan, -inf], nan, None),
        ([-inf, 3], inf, None),
        ([3, -(2.0**126)], 2.0**126, [1, -1]),
        ([-0.0, 0.25], 0.75, [0, 0]),
    ] * 10  # so many tensors are put together
    gradients = [jnp.asarray(gradient, dtype) for gradient, _, _ in cases]
    tx = optim.median_clip(0.5)
    update = jax.jit(tx.update)
    _, state = update([jnp.asarray([2, -2], dtype)] * len(cases), tx.init(gradients))
    updates, state = update(gradients, state)
    np.testing.assert_array_equal(state.norm, np.asarray([norm for _, norm, _ in cases]))
    np.testing.assert_array_equal(state.nonfinite_count, [new is None for *_, new in cases])
    for moved, median, (*_, new) in zip(updates, state.median, cases, strict=True):
        np.testing.assert_array_equal(median, [0.5, -0.5] if new is None else new)
        np.testing.assert_array_equal(moved, [0, 0] if new is None else new)
