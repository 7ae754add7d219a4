"""Clip-RAdaGradD against its published rule, in both versions, with and without momentum."""

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
    clip: float,
    kind: str,
    delay: bool = True,
    eps: float = 1e-8,
    eta: float = 1.0,
    initial_accumulator: float = 1e-4,
    b1: float = 0.0,
    b2: float | None = None,
) -> Rule:
    """Chezhegov et al. (2024): Clip-RAdaGradD and Clip-AdamD, by norm and by coordinate."""
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    b_squared = {name: np.full(shape, initial_accumulator) for name, shape in SHAPES.items()}
    old, new = (1.0, eta) if b2 is None else (b2, (1 - b2) * eta)

    def rule(gradient: Tree, params: Tree) -> Step:
        del params
        total = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        update = {}
        for name, g in gradient.items():
            if kind == "norm":
                clipped = g * min(1.0, clip / total) if total else g
                square = min(total, clip) ** 2
            elif kind == "tensor":
                norm = np.sqrt((g**2).sum())
                clipped = g * min(1.0, clip / norm) if norm else g
                square = clipped**2
            else:
                clipped = np.clip(g, -clip, clip)
                square = clipped**2
            m[name] = b1 * m[name] + (1 - b1) * clipped
            following = old * b_squared[name] + new * square
            b = np.sqrt(b_squared[name] if delay else following)
            update[name] = -learning_rate * m[name] / (b + eps)
            b_squared[name] = following
        if kind == "norm":
            return Step(update, total, clip, total > clip)
        size = np.linalg.norm if kind == "tensor" else lambda g: np.abs(g).max()
        norm = reference.per_tensor(lambda name: size(gradient[name].ravel()))
        return Step(update, norm, np.full(len(SHAPES), clip), norm > clip)

    return rule


@pytest.mark.parametrize("kind", ["coordinate", "norm", "tensor"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay": False, "initial_accumulator": 0.0, "eps": 1e-3},
        {"eta": 0.5, "b1": 0.9, "b2": 0.99, "initial_accumulator": 0.1},
    ],
    ids=lambda options: "-".join(options) or "defaults",
)
def test_follows_the_published_rule(kind: str, options: dict[str, Any]) -> None:
    clip = {"coordinate": 0.3, "norm": 1.0, "tensor": 0.8}[kind]
    steps = reference.assert_follows(
        optim.clip_radagrad_d(1e-3, clip=clip, kind=kind, **options),
        lambda: published_rule(1e-3, clip, kind, **options),
    )
    assert 5 < sum(np.any(step.clipped) for step in steps) < len(steps)


def test_is_adagrad_without_delay_and_clipping() -> None:
    ours = optim.clip_radagrad_d(0.1, np.inf, 1e-7, delay=False, initial_accumulator=0.1)
    theirs = optax.adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7)
    params = jnp.asarray([1.0, -2.0, 3.0])
    states = ours.init(params), theirs.init(params)
    step = jax.jit(
        lambda g, states: (ours.update(g, states[0], params), theirs.update(g, states[1], params))
    )
    for size in (1.0, -3.0, 50.0, 0.0, 0.2):
        (mine, first), (others, second) = step(size * jnp.asarray([1.0, 0.3, -2.0]), states)
        states = first, second
        np.testing.assert_allclose(mine, others, rtol=1e-5)


def test_a_spike_reaches_the_divisor_one_update_later() -> None:
    tx = optim.clip_radagrad_d(1.0, clip=10.0, eps=0.0, kind="norm", initial_accumulator=1.0)
    gradient = jnp.asarray([3.0, 4.0])
    first, state = tx.update(gradient, tx.init(gradient))
    second, _ = tx.update(gradient, state)
    np.testing.assert_allclose(first, [-3.0, -4.0], rtol=1e-6)
    np.testing.assert_allclose(second, -np.asarray([3.0, 4.0]) / np.sqrt(26), rtol=1e-6)


def test_state_is_one_number_or_one_copy() -> None:
    params = {"a": jnp.ones((3, 2), jnp.bfloat16)}
    (state, _) = optim.clip_radagrad_d(1e-3, kind="norm").init(params)
    assert (state.accumulator.shape, state.mu) == ((), None)
    (state, _) = optim.clip_radagrad_d(1e-3, b1=0.9).init(params)
    assert state.accumulator["a"].dtype == state.mu["a"].dtype == jnp.float32


def test_hyperparameters_may_be_injected_with_momentum() -> None:
    options = {"clip": 0.3, "b1": 0.9, "b2": 0.99, "eta": 0.5, "initial_accumulator": 0.1}
    injected = optax.inject_hyperparams(optim.clip_radagrad_d, ("delay", "kind"))(1e-3, **options)
    plain = optim.clip_radagrad_d(1e-3, **options)
    params = jnp.ones(3)
    states = injected.init(params), plain.init(params)
    step = jax.jit(
        lambda g, states: (
            injected.update(g, states[0], params),
            plain.update(g, states[1], params),
        )
    )
    for size in (1.0, -3.0, 0.2):
        (mine, first), (others, second) = step(size * params, states)
        states = first, second
        np.testing.assert_allclose(mine, others, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "vector"},
        {"clip": 0.0},
        {"eps": -1.0},
        {"eta": -1.0},
        {"initial_accumulator": 0.0},
        {"b1": 1.0},
        {"b2": 1.0},
    ],
    ids=str,
)
def test_refuses_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"clip_radagrad_d\.{next(iter(options))}="):
        optim.clip_radagrad_d(1e-3, **options)


def test_delay_is_static() -> None:
    with pytest.raises(TypeError, match="static_args='delay'"):
        optim.clip_radagrad_d(1e-3, delay=jnp.asarray(True))


@pytest.mark.parametrize("kind", ["coordinate", "tensor"])
def test_a_gradient_that_is_none_is_refused(kind: str) -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = optim.clip_radagrad_d(1e-3, kind=kind)
    with pytest.raises(ValueError, match=r"updates hold 1 tensors.*initialised for 2"):
        tx.update({"a": jnp.ones(2), "b": None}, tx.init(params), params)


@pytest.mark.parametrize("kind", ["coordinate", "norm", "tensor"])
def test_complex_tensors_are_refused(kind: str) -> None:
    tx = optim.clip_radagrad_d(1e-3, kind=kind)
    with pytest.raises(TypeError, match=r"clip_radagrad_d: complex tensors \(complex64\)"):
        tx.init(jnp.ones(2, jnp.complex64))
    state = tx.init(jnp.ones(2))
    with pytest.raises(TypeError, match=r"clip_radagrad_d: complex tensors"):
        tx.update(jnp.ones(2, jnp.complex64), state)
