"""Rows of one label are positives of each other."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.objectives.unicl import UniCL
from tests.objectives import fixture_g as g


def value(labels, *, images=g.I, texts=g.T, **options):
    outputs = {"image": images, "text": texts, "label": jnp.array(labels, jnp.int32)}
    return float(g.value(UniCL(**options), outputs)[0])


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_value_on_fixture_g(implementation):
    assert value([0, 0, 1], implementation=implementation) == pytest.approx(0.6869870, abs=1e-6)


def test_unique_and_missing_labels_are_clip():
    for labels in ([5, 2, 9], [-1, -1, -1], [-1, 0, -1]):
        assert value(labels) == pytest.approx(0.1081597, rel=1e-5)


def test_one_label_for_all_has_the_minimum_ln_b():
    assert value([3, 3, 3]) > math.log(3)
    same = g.unit_vectors(30, 30, 30)
    assert value([3, 3, 3], images=same, texts=same) == pytest.approx(math.log(3), rel=1e-5)


def test_gradient_is_that_of_the_formula():
    labels = np.array([0, 1, 0, -1, -1, 0], np.int32)

    def reference(x, _):
        equal = (labels[:, None] == labels) & (labels >= 0) | np.eye(6, dtype=bool)
        target = equal / equal.sum(1, keepdims=True)
        total = 0.0
        for logits in (10 * x["image"] @ x["text"].T, 10 * x["text"] @ x["image"].T):
            total -= (target * (logits - g.lse(logits)[:, None])).sum(1).mean() / 2
        return total

    outputs = g.random_rows("image", "text") | {"label": jnp.asarray(labels)}
    g.check_gradient(UniCL(), outputs, reference)


def test_captions_can_be_the_labels():
    objective = UniCL("caption")
    assert objective.fields == {"caption_hash": fields.CaptionHash()}
    outputs = {"image": g.I, "text": g.T, "caption_hash": jnp.array([7, 7, 3], jnp.int32)}
    assert float(g.value(objective, outputs)[0]) == pytest.approx(0.6869870, abs=1e-6)
    assert UniCL().fields == {"label": fields.Label()}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"unicl.labels='text'; use 'class' or 'caption'"):
        UniCL("text")
