"""AdaClip against its published rule."""

from __future__ import annotations

import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(theta: float) -> Rule:
    """Step 1 of Stable-SPAM, Huang et al. (2025)."""
    maximum = dict.fromkeys(SHAPES, 0.0)
    t = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t
        t += 1
        update, sizes, bounds = {}, {}, {}
        for name, g in gradient.items():
            size = np.abs(g).max()
            maximum[name] = theta * maximum[name] + (1 - theta) * size
            bound = maximum[name] / (1 - theta**t)
            scaled = g * bound / size if size else g
            update[name] = np.where(np.abs(g) > bound, scaled, g)
            sizes[name], bounds[name] = size, bound
        norm, threshold = reference.per_tensor(sizes.get), reference.per_tensor(bounds.get)
        return Step(update, norm, threshold, norm > threshold)

    return rule


@pytest.mark.parametrize("theta", [0.999, 0.5])
def test_follows_the_published_rule(theta: float) -> None:
    reference.assert_follows(optim.adaclip(theta), lambda: published_rule(theta), step_size=0.1)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"adaclip\.theta=1"):
        optim.adaclip(1.0)


def test_one_element_that_spikes_leaves_the_others_alone() -> None:
    tx = optim.adaclip(0.9)
    gradient = np.asarray([1.0, -1.0, 0.5], np.float32)
    state = tx.init(gradient)
    for _ in range(10):
        _, state = tx.update(gradient, state)
    updates, _ = tx.update(np.asarray([500.0, -1.0, 0.5], np.float32), state)
    np.testing.assert_array_equal(updates[1:], gradient[1:])
    assert 1.0 < updates[0] < 100.0
