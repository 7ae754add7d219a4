"""A linear classifier on the image tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models import presets
from jaxclip.objectives.class_head import ClassHead, class_logits
from tests.objectives import fixture_g as g

LABELS = np.array([1, 0, -1, 3, 7, 2], np.int32)  # one has no class, one is no class of the head


def reference(logits, labels, classes, smoothing):
    counts = (labels >= 0) & (labels < classes)
    logits, labels = logits[counts], labels[counts]
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(target * log).sum(1).mean(), (logits.argmax(1) == labels).mean()


@pytest.mark.parametrize("features", ["image", "image_tokens"])
def test_value_is_the_formulas(features):
    rng = np.random.default_rng(0)
    term = ClassHead(num_classes=5, features=features, init_scale=1.0)
    sizes = presets.get("tiny")
    params = term.init_params(jax.random.key(0), sizes)
    tokens = features == "image_tokens"
    shape = (6, 4, sizes.image.width) if tokens else (6, sizes.embed_dim)
    x = rng.standard_normal(shape).astype(np.float32)
    outputs = {features: x, "label": jnp.asarray(LABELS)}
    value, metrics, _ = g.value(term, outputs, g.context(size=6), params)
    wide = x.astype(np.float64)
    if tokens:
        wide = wide.mean(1)
        wide = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    else:
        wide = wide * sizes.embed_dim**0.5
    expected = reference(wide @ np.asarray(params["kernel"], np.float64), LABELS, 5, 0.1)
    assert float(value) == pytest.approx(expected[0], rel=1e-5)
    assert float(metrics["top1"]) == pytest.approx(expected[1])
    assert float(metrics["left_out"]) == 2


def test_it_begins_near_even_odds_and_without_labels_is_zero():
    term = ClassHead(num_classes=5, label_smoothing=0.0)
    params = term.init_params(jax.random.key(0), presets.get("tiny"))
    x = jnp.full((2, 256), 1 / 16)
    np.testing.assert_allclose(jax.nn.softmax(class_logits(params, x)), 0.2, atol=2e-3)
    outputs = {"image": x, "label": jnp.array([-1, -1])}
    assert float(g.value(term, outputs, g.context(size=2), params)[0]) == 0.0


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"class_head\.num_classes=1"):
        ClassHead(num_classes=1)
    with pytest.raises(ValueError, match=r"class_head\.features='pooled'; use 'image'"):
        ClassHead(features="pooled")
