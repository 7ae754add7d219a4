"""AdaGN against its published rule."""

from __future__ import annotations

import numpy as np
import pytest

from jaxclip import optim
from tests.optim import reference
from tests.optim.reference import SHAPES, Rule, Step, Tree


def published_rule(gamma1: float = 0.7, gamma2: float = 0.9, eps: float = 1e-8) -> Rule:
    """Step 2 of Stable-SPAM, Huang et al. (2025)."""
    first, second = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0)
    t = 0

    def rule(gradient: Tree, params: Tree) -> Step:
        nonlocal t
        t += 1
        update, norms, targets = {}, {}, {}
        for name, g in gradient.items():
            norm = np.linalg.norm(g)
            first[name] = gamma1 * first[name] + (1 - gamma1) * norm
            second[name] = gamma2 * second[name] + (1 - gamma2) * norm**2
            mean, square = first[name] / (1 - gamma1**t), second[name] / (1 - gamma2**t)
            targets[name] = mean / (np.sqrt(square) + eps)
            update[name] = g / norm * targets[name] if norm else g
            norms[name] = norm
        norm, threshold = reference.per_tensor(norms.get), reference.per_tensor(targets.get)
        return Step(update, norm, threshold, norm > threshold)

    return rule


@pytest.mark.parametrize("options", [{}, {"gamma1": 0.9, "gamma2": 0.99, "eps": 1e-3}])
def test_follows_the_published_rule(options: dict) -> None:
    reference.assert_follows(
        optim.adagn(**options), lambda: published_rule(**options), step_size=0.1
    )


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"adagn\.gamma1=1"):
        optim.adagn(gamma1=1.0)
    with pytest.raises(ValueError, match=r"adagn\.eps=-1"):
        optim.adagn(eps=-1.0)
