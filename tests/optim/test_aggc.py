"""AGGC against its rule, and what its groups are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree

GROUPS = (("bias", "logit_scale"), ("embedding", "kernel"))


def published_rule(
    beta: float = 0.95, high: float = 1.2, low: float = 0.0, max_raise: float = 1.1
) -> Rule:
    """Li et al. (2026), with a bias-corrected average."""
    average, seen = [0.0, 0.0], [0, 0]

    def rule(gradient: Tree, params: Tree) -> Step:
        update, norms, bounds, acted = {}, {}, {}, {}
        for i, names in enumerate(GROUPS):
            norm = np.sqrt(sum(np.sum(gradient[name] ** 2) for name in names))
            let_out, bound = norm, norm
            if seen[i]:
                usual = average[i] / (1 - beta ** seen[i])
                bound = high * usual
                if norm > bound:
                    let_out = bound
                elif norm < low * usual:
                    let_out = min(low * usual, max_raise * norm)
            if norm:
                seen[i] += 1
                average[i] = beta * average[i] + (1 - beta) * let_out
            for name in names:
                update[name] = gradient[name] * (let_out / norm if norm else 1.0)
                norms[name], bounds[name], acted[name] = norm, bound, let_out != norm
        return Step(
            update,
            reference.per_tensor(norms.get),
            reference.per_tensor(bounds.get),
            np.asarray([acted[name] for name in SHAPES]) if not norm else None,
        )

    return rule


@pytest.mark.parametrize("options", [{}, {"beta": 0.8, "high": 1.05, "low": 0.9}])
def test_follows_the_published_rule(options: dict) -> None:
    tx = optim.aggc(groups=("^(bias|logit_scale)$", "."), **options)
    reference.assert_follows(tx, lambda: published_rule(**options), step_size=0.1)


def test_the_second_update_is_not_clipped_to_a_twentieth() -> None:
    """The released code's average starts at zero: its second threshold would be 0.05 x 1.2."""
    tx = optim.aggc()
    state = tx.init(jnp.zeros(4))
    for _ in range(3):
        update, state = tx.update(jnp.ones(4), state)
        np.testing.assert_allclose(update, 1.0, rtol=1e-6)
    np.testing.assert_allclose(state.threshold, [2.4], rtol=1e-6)
    assert not state.clipped.any()


def test_modules_of_all_layers_are_a_group_and_towers_are_apart() -> None:
    tree = {
        "image": {f"blocks_{i}": {"up": {"kernel": 0.0, "bias": 0.0}} for i in range(2)},
        "text": {"blocks_0": {"up": {"kernel": 0.0}, "down": {"kernel": 0.0}}},
        "logit_scale": 0.0,
    }
    gradient = jax.tree.map(lambda _: jnp.ones(1), tree)
    tx = optim.aggc()
    _, state = tx.update(gradient, tx.init(gradient))
    norms = dict(zip(optim.tensor_names(tree), state.norm.tolist(), strict=True))
    assert norms["image/blocks_0/up/kernel"] == norms["image/blocks_1/up/bias"] == 2.0
    assert norms["text/blocks_0/up/kernel"] == norms["text/blocks_0/down/kernel"] == 1.0
    assert norms["logit_scale"] == 1.0


def test_a_spike_of_one_group_leaves_the_others_alone() -> None:
    gradient = {"a": {"kernel": jnp.ones(4)}, "b": {"kernel": jnp.ones(4)}}
    tx = optim.aggc(high=1.5)
    _, state = tx.update(gradient, tx.init(gradient))
    gradient["a"]["kernel"] *= 1000.0
    update, state = tx.update(gradient, state)
    np.testing.assert_allclose(update["a"]["kernel"], 1.5, rtol=1e-6)
    np.testing.assert_array_equal(update["b"]["kernel"], 1.0)
    assert state.clipped.tolist() == [True, False]


def test_small_norms_are_raised_by_no_more_than_allowed() -> None:
    tx = optim.aggc(low=0.9, max_raise=1.5)
    state = tx.init(jnp.zeros(4))
    _, state = tx.update(jnp.ones(4), state)
    for size, wanted in ((0.8, 0.9), (0.1, 0.15)):
        update, _ = tx.update(size * jnp.ones(4), state)
        np.testing.assert_allclose(update, wanted, rtol=1e-6)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"aggc\.high=0"):
        optim.aggc(high=0.0)
    with pytest.raises(ValueError, match=r"aggc\.groups: '\(' is no regular expression"):
        optim.aggc(groups=["("])
