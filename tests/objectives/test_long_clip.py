"""Long texts, and short ones against the images' primary components."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.objectives.long_clip import LongCLIP, primary_components
from tests.objectives import fixture_g as g


def vectors(batch, size, seed=0):
    x = np.random.default_rng(seed).standard_normal((batch, size)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("batch", "size"), [(12, 30), (30, 12)])
def test_components_are_those_of_the_singular_value_decomposition(batch, size):
    x = vectors(batch, size)
    wide = x.astype(np.float64)
    mean = wide.mean(0)
    _, _, rows = np.linalg.svd(wide - mean, full_matrices=False)
    expected = mean + (wide - mean) @ rows[:5].T @ rows[:5]
    np.testing.assert_allclose(jax.jit(primary_components, static_argnums=1)(x, 5), expected,
                               atol=2e-6)  # fmt: skip


def test_with_all_components_it_is_the_identity():
    x = vectors(6, 20)
    np.testing.assert_array_equal(primary_components(x, 5), x)
    np.testing.assert_allclose(primary_components(vectors(6, 20), 4).mean(0), x.mean(0), atol=1e-6)


def test_equal_images_add_no_direction_and_gradients_stay_finite():
    x = np.repeat(vectors(3, 20), 4, axis=0)
    np.testing.assert_allclose(primary_components(x, 8), x, atol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(primary_components(x, 8) ** 3))(x)
    assert np.isfinite(gradient).all()


def nce(images, texts, scale, smoothing):
    logits = scale * images @ texts.T
    target = (1 - smoothing) * np.eye(len(logits)) + smoothing / len(logits)

    def rows(z):
        return -(target * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1).mean()

    return (rows(logits) + rows(logits.T)) / 2


def test_the_loss_is_the_sum_of_both_contrasts():
    images, long, short = vectors(8, 16), vectors(8, 16, 1), vectors(8, 16, 2)
    term = LongCLIP(components=3, short_weight=0.5)
    outputs = {"image": images, "text": long, "short/text": short}
    value, metrics, _ = g.value(term, outputs, g.context(10.0, size=8))
    wide = [x.astype(np.float64) for x in (images, long, short)]
    coarse = np.asarray(primary_components(images, 3), np.float64)
    expected = nce(wide[0], wide[1], 10, 0.1), nce(coarse, wide[2], 10, 0.1)
    assert float(metrics["long"]) == pytest.approx(expected[0], rel=1e-5)
    assert float(metrics["short"]) == pytest.approx(expected[1], rel=1e-5)
    assert float(value) == pytest.approx(expected[0] + 0.5 * expected[1], rel=1e-5)


def test_without_the_second_term_and_smoothing_it_is_clip():
    outputs = {"image": g.I, "text": g.T, "short/text": g.U}
    term = LongCLIP(short_weight=0.0, label_smoothing=0.0)
    assert float(g.value(term, outputs)[0]) == pytest.approx(0.1081597, rel=1e-5)


def test_both_texts_are_of_one_caption():
    spec = LongCLIP().fields
    assert spec["text"] == fields.Captions(policy="longest")
    assert spec["short/text"].policy == "longest" and spec["short/text"].ops == "first_sentence"
    with pytest.raises(ValueError, match=r"long_clip\.components=0"):
        LongCLIP(components=0)
