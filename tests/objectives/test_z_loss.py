"""CLIP with z-loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.z_loss import ZLoss
from tests.objectives import fixture_g as g


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_value_of_the_specification(implementation):
    """Logits [[2, 0], [0, 2]]: log Z is 2.126928 in every row and column."""
    pair = {"image": jnp.eye(2), "text": jnp.eye(2)}
    objective = ZLoss(contrastive=0.0, z=1e-4, implementation=implementation)
    loss, metrics, _ = g.value(objective, pair, g.context(2.0, size=2))
    assert float(loss) == pytest.approx(4.523824e-4, rel=1e-5)
    assert float(metrics["log_z"]) == pytest.approx(2.126928, abs=1e-6)


def test_without_a_weight_it_is_clip():
    pair = {"image": g.I, "text": g.T}
    loss, _, _ = g.value(ZLoss(z=0.0), pair)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        logits = 10.0 * x["image"] @ x["text"].T
        z = sum((np.log(np.exp(logits).sum(axis)) ** 2).mean() for axis in (0, 1)) / 2
        return 0.5 * g.clip(x["image"], x["text"], 10.0) + 0.01 * z

    g.check_gradient(ZLoss(contrastive=0.5, z=0.01), g.random_rows("image", "text"), reference)


def test_it_pulls_the_scale_down():
    pair = {"image": jnp.eye(3), "text": jnp.eye(3)}

    def loss(log_scale):
        ctx = dataclasses.replace(g.context(), logit_scale=log_scale)
        return g.value(ZLoss(contrastive=0.0, z=1.0), pair, ctx)[0]

    assert float(jax.grad(loss)(jnp.log(jnp.float32(10.0)))) > 0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"z_loss.z=-1 must be a number of at least 0"):
        ZLoss(z=-1)
    with pytest.raises(ValueError, match=r"z_loss.implementation='fast'; use 'plain' or"):
        ZLoss(implementation="fast")
