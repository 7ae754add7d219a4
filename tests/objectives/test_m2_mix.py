"""Geodesic multi-modal mixup."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives import m2_mix
from jaxclip.objectives.m2_mix import M2Mix
from tests.objectives import fixture_g as g


def test_mixed_points_and_loss_on_fixture_g():
    points = m2_mix.slerp(g.I, g.T, 0.3)
    np.testing.assert_allclose(points, g.unit_vectors(14, 46, 164), atol=1e-6)
    assert float(M2Mix().mixed_negatives(g.I, g.T, 0.3)) == pytest.approx(0.3152186, abs=1e-5)


def test_at_its_ends_the_mixture_is_the_image_or_the_text():
    np.testing.assert_allclose(m2_mix.slerp(g.I, g.T, 1.0), g.I, atol=1e-6)
    np.testing.assert_allclose(m2_mix.slerp(g.I, g.T, 0.0), g.T, atol=1e-6)
    # All images: the first part has cosines of images, the second is CLIP's text rows.
    images, texts = (np.asarray(x, np.float64) for x in (g.I, g.T))
    scale, own = 1 / 0.07, (images * texts).sum(1) / 0.07
    expected = 0.0
    for rows in (images, texts):
        logits = g.off_diagonal(scale * rows @ images.T)
        expected += (np.logaddexp(g.lse(logits), own) - own).mean()
    assert float(M2Mix().mixed_negatives(g.I, g.T, 1.0)) == pytest.approx(expected, rel=1e-5)


def test_without_the_mixture_it_is_clip_at_its_scale():
    pair = {"image": g.I, "text": g.T}
    loss, _, _ = g.value(M2Mix(mix=0.0, scale=None), pair)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    loss, _, _ = g.value(M2Mix(mix=0.0, scale=10.0), pair, g.context(3.0))
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


def test_a_step_draws_one_ratio_and_epochs_lower_the_weight():
    pair = {"image": g.I, "text": g.T}
    objective = M2Mix(mix=0.5, epoch_steps=10)
    for step, share in ((9, 1.0), (10, 0.5), (25, 1 / 3)):
        loss, metrics, _ = g.value(objective, pair, g.context(step=step))
        expected = metrics["clip"] + 0.5 * share * metrics["mixed"]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        mixed = objective.mixed_negatives(g.I, g.T, metrics["ratio"])
        np.testing.assert_allclose(metrics["mixed"], mixed, rtol=1e-6)


def test_gradient_is_that_of_the_formula():
    ratio = float(g.value(M2Mix(), g.random_rows("image", "text"), g.context(size=6))[1]["ratio"])

    def reference(x, _):
        image, text = x["image"], x["text"]
        own = (image * text).sum(1)
        angle = np.arccos(own)[:, None]
        mixed = (np.sin(ratio * angle) * image + np.sin((1 - ratio) * angle) * text) / np.sin(angle)
        total = 0.0
        for rows in (image, text):
            logits = rows @ mixed.T / 0.07
            np.fill_diagonal(logits, own / 0.07)
            total += (g.lse(logits) - np.diagonal(logits)).mean()
        return g.clip(image, text, 20.0) + 0.7 * total

    g.check_gradient(M2Mix(0.7, scale=20.0), g.random_rows("image", "text"), reference)


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_and_opposite_rows_have_finite_gradients(sign):
    same = sign * g.I

    def loss(image, text):
        return M2Mix().mixed_negatives(image, text, jnp.float32(0.3))

    gradients = jax.grad(loss, argnums=(0, 1))(g.I, same)
    assert np.isfinite(gradients).all() and np.abs(gradients).max() > 0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"m2_mix.beta=0 must be a positive number"):
        M2Mix(beta=0)
    with pytest.raises(ValueError, match=r"m2_mix.epoch_steps=-1 must be a whole number"):
        M2Mix(epoch_steps=-1)
