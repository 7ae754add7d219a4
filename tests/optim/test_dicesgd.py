"""DiceSGD against its published rule, its noise, and what it is for: no bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree

OPTIONS = {
    "learning_rate": 0.1,
    "clip_gradient": 0.8,
    "clip_error": 1.0,
    "noise_multiplier": 0.0,
    "seed": 3,
}


def per_example_gradients() -> list[Tree]:
    """Three examples a step, each with spikes of its own."""
    runs = zip(*(reference.spiky_gradients(seed=seed) for seed in range(3)), strict=True)
    return [{name: np.stack([g[name] for g in examples]) for name in SHAPES} for examples in runs]


def clip(tree: Tree, bound: float) -> tuple[Tree, float]:
    norm = np.sqrt(sum(np.sum(x**2) for x in tree.values()))
    factor = bound / norm if norm > bound else 1.0
    return {name: factor * x for name, x in tree.items()}, norm


def published_rule() -> Rule:
    """Algorithm 2 of Zhang et al. (2023), without noise."""
    error = {name: np.zeros(shape) for name, shape in SHAPES.items()}

    def rule(gradient: Tree, params: Tree) -> Step:
        examples = [{name: g[i] for name, g in gradient.items()} for i in range(3)]
        clipped, norms = zip(*(clip(g, OPTIONS["clip_gradient"]) for g in examples), strict=True)
        fed_back, _ = clip(error, OPTIONS["clip_error"])
        update = {}
        for name in SHAPES:
            v = np.mean([g[name] for g in clipped], axis=0) + fed_back[name]
            error[name] = error[name] + gradient[name].mean(0) - v
            update[name] = -OPTIONS["learning_rate"] * v
        bound = OPTIONS["clip_gradient"]
        return Step(update, max(norms), bound, max(norms) > bound)

    return rule


def test_follows_the_published_rule() -> None:
    reference.assert_follows(optim.dicesgd(**OPTIONS), published_rule, per_example_gradients())


@pytest.mark.parametrize("clip_error", [2.0, 1.0, 1e-9])
def test_noise_has_the_promised_size_and_changes_every_step(clip_error: float) -> None:
    """That of the authors' code: sqrt(1 + 2 C2 / C1) times that of DP-SGD."""
    tx = optim.dicesgd(0.5, 2.0, clip_error, noise_multiplier=3.0, seed=1)
    zeros = jnp.zeros((8, 20_000))
    first, state = tx.update(zeros, tx.init(zeros[0]))
    second, _ = tx.update(zeros, state)
    other, _ = optim.dicesgd(0.5, 2.0, clip_error, 3.0, seed=2).update(zeros, tx.init(zeros[0]))
    deviation = 0.5 * 3.0 * 2.0 / 8 * np.sqrt(1 + clip_error)
    for draw in (first, second, other):
        np.testing.assert_allclose(np.std(draw), deviation, rtol=0.03)
        assert abs(np.mean(draw)) < 0.03 * np.sqrt(3)
    for a, b in ((first, second), (first, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert not np.any(state.error)


def test_finds_the_mean_where_plain_clipping_does_not() -> None:
    """Examples 0, 0 and 30: clipping to 1 makes 1/3·(…) of it a fixed point near 0."""
    data = jnp.asarray([0.0, 0.0, 30.0])

    def solve(clip_error: float) -> float:
        tx = optim.dicesgd(0.05, 1.0, clip_error, 0.0, 0)

        def step(carry: tuple, _: None) -> tuple:
            x, state = carry
            update, state = tx.update(x - data, state)
            return (x + update, state), None

        carry = (jnp.float32(0.0), tx.init(jnp.float32(0.0)))
        return float(jax.jit(lambda c: jax.lax.scan(step, c, length=4000)[0][0])(carry))

    assert abs(solve(clip_error=2.0) - 10.0) < 0.1
    assert solve(clip_error=1e-6) < 1.0


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"dicesgd\.clip_error=0"):
        optim.dicesgd(**{**OPTIONS, "clip_error": 0})
    with pytest.raises(ValueError, match=r"dicesgd\.seed is required"):
        optim.dicesgd(**{**OPTIONS, "seed": None})
    tx = optim.dicesgd(**OPTIONS)
    params = {"a": jnp.zeros(()), "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"leading axis of examples.*vmap"):
        tx.update({"a": jnp.zeros(()), "b": jnp.zeros((3, 2))}, tx.init(params))
