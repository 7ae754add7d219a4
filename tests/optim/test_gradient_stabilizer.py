"""GradientStabilizer against the rule of its authors' code, and its closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(gamma1: float = 0.6, gamma2: float = 0.999, eps: float = 1e-12) -> Rule:
    """Huang et al. (2026): as AdaGN, but silent tensors are left alone."""
    first, second, seen = (dict.fromkeys(SHAPES, 0.0) for _ in range(3))

    def rule(gradient: Tree, params: Tree) -> Step:
        update, norms, targets = {}, {}, {}
        for name, g in gradient.items():
            norms[name] = norm = np.linalg.norm(g)
            targets[name], update[name] = 0.0, g
            if norm > 0:
                seen[name] += 1
                first[name] = gamma1 * first[name] + (1 - gamma1) * norm
                second[name] = gamma2 * second[name] + (1 - gamma2) * norm**2
                mean = first[name] / (1 - gamma1 ** seen[name])
                square = second[name] / (1 - gamma2 ** seen[name])
                targets[name] = mean / (np.sqrt(square) + eps)
                update[name] = g / norm * targets[name]
        norm, threshold = reference.per_tensor(norms.get), reference.per_tensor(targets.get)
        return Step(update, norm, threshold, norm > threshold)

    return rule


@pytest.mark.parametrize("options", [{}, {"gamma1": 0.9, "gamma2": 0.99, "eps": 1e-3}])
def test_follows_the_published_rule(options: dict) -> None:
    reference.assert_follows(
        optim.gradient_stabilizer(**options), lambda: published_rule(**options), step_size=0.1
    )


def norm_of_spike(times: float, gamma1: float, gamma2: float, steps: int) -> float:
    """What comes out of a spike after many steps of norm one."""
    tx = optim.gradient_stabilizer(gamma1, gamma2)
    sizes = jnp.ones(steps).at[-1].set(times)

    def step(state, size):
        update, state = tx.update(size * jnp.asarray([0.6, 0.8]), state)
        return state, jnp.linalg.norm(update)

    return float(jax.lax.scan(step, tx.init(jnp.zeros(2)), sizes)[1][-1])


@pytest.mark.parametrize(
    ("times", "wanted"), [(10.0, 1.1207), (100.0, 0.9704), (1e6, 0.9487), (1.0, 1.0)]
)
def test_a_spike_comes_out_bounded_whatever_its_size(times: float, wanted: float) -> None:
    assert norm_of_spike(times, 0.7, 0.9, 200) == pytest.approx(wanted, abs=5e-5)


def test_the_bound_of_the_docstring_is_reached_and_not_passed() -> None:
    gamma1, gamma2 = 0.6, 0.999
    bound = np.sqrt(gamma1**2 / gamma2 + (1 - gamma1) ** 2 / (1 - gamma2))
    assert bound == pytest.approx(12.663, abs=1e-3)
    worst = (1 - gamma1) * gamma2 / (gamma1 * (1 - gamma2))
    assert norm_of_spike(worst, gamma1, gamma2, 10_000) == pytest.approx(bound, rel=1e-3)
    for times in (worst / 10, 10 * worst, 1e6):
        assert norm_of_spike(times, gamma1, gamma2, 10_000) < bound


def test_zero_gradients_enter_no_average_unlike_in_adagn() -> None:
    ones, zeros = jnp.ones(4), jnp.zeros(4)
    for name, silent in (("gradient_stabilizer", 1.0), ("adagn", None)):
        tx = getattr(optim, name)()
        state = tx.init(zeros)
        for gradient in (ones, zeros, zeros, ones):
            update, state = tx.update(gradient, state)
        size = float(jnp.linalg.norm(update))
        assert size == pytest.approx(1.0, rel=1e-6) if silent else size < 0.9


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"gradient_stabilizer\.gamma2=1"):
        optim.gradient_stabilizer(gamma2=1.0)
    with pytest.raises(ValueError, match=r"gradient_stabilizer\.eps=-1"):
        optim.gradient_stabilizer(eps=-1.0)
