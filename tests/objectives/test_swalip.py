"""Soft matches of other views as targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives import _rocket, swalip
from tests.objectives import fixture_g as g


def test_the_plan_on_fixture_g():
    plan = np.asarray(swalip.sinkhorn(g.I @ g.T.T, 0.05, 3))
    np.testing.assert_allclose(plan[0], [0.969909, 0.030091, 0], atol=1e-5)
    np.testing.assert_allclose(plan.sum(0), 1, atol=1e-3)
    np.testing.assert_allclose(plan.sum(1), 1, atol=1e-5)


def test_large_scores_stay_finite():
    plan = swalip.sinkhorn(jnp.array([[1.0, -1.0], [-1.0, 1.0]]), 0.005, 3)
    np.testing.assert_allclose(plan, np.eye(2), atol=1e-6)


def local(images, texts, scale=10.0):
    return _rocket.Local(images, texts, jnp.log(scale))


def test_targets_are_the_other_views_and_fixed():
    views = local([g.I, g.N], [g.T, g.U])
    objective = swalip.SwALIP(swap_weight=0.5)
    added, metrics = objective.relative({}, {}, views, g.context())
    images, texts = ([np.asarray(x, np.float64) for x in side] for side in views[:2])
    total = 0.0
    for a in (0, 1):
        for b in (0, 1):
            plan = np.asarray(swalip.sinkhorn(images[1 - a] @ texts[1 - b].T, 0.05, 3))
            logits = 10 * images[a] @ texts[b].T
            for axis in (0, 1):
                normed = logits - np.log(np.exp(logits).sum(axis, keepdims=True))
                total -= (plan * normed).sum() / 3 / 8
    assert float(metrics["swap"]) == pytest.approx(total, rel=1e-5)
    assert float(added) == pytest.approx(0.5 * total, rel=1e-5)


def test_no_gradient_goes_through_the_plan():
    def value(other):
        views = local([g.I, other], [g.T, g.U], scale=0.0)  # logits are all 0
        return swalip.SwALIP().relative({}, {}, views, g.context())[0]

    assert not jax.grad(value)(g.N).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.1}, r"swalip\.label_smoothing=0\.1; its targets are soft: use 0"),
        ({"epsilon": 0}, r"swalip\.epsilon=0 must be a positive number"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        swalip.SwALIP(**options)
