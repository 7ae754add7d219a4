"""CLOOB."""

import numpy as np
import pytest

from jaxclip.objectives.cloob import CLOOB
from jaxclip.objectives.dcl import DCL
from tests.objectives import fixture_g as g

PAIR = {"image": g.I, "text": g.T}


def test_values_on_fixture_g():
    loss, _, _ = g.value(CLOOB(), PAIR)
    assert float(loss) == pytest.approx(-1.1790134, abs=1e-5)
    loss, _, _ = g.value(CLOOB(hopfield=False), PAIR)
    assert float(loss) == pytest.approx(-1.0860047, abs=1e-5)


def test_without_retrieval_it_is_dcl_and_so_it_is_in_the_limit():
    dcl, _, _ = g.value(DCL(), PAIR, g.context(30.0))
    loss, _, _ = g.value(CLOOB(hopfield=False), PAIR)
    np.testing.assert_allclose(loss, 2 / 30 * dcl, rtol=1e-5)
    # A sharp retrieval finds each row itself, and each text's nearest image is its own.
    near = {"image": g.I, "text": g.unit_vectors(5, 62, 155)}
    loss, _, _ = g.value(CLOOB(beta=1e4), near)
    equal, _, _ = g.value(CLOOB(hopfield=False), {"image": g.I, "text": g.I})
    other, _, _ = g.value(CLOOB(hopfield=False), {"image": near["text"], "text": near["text"]})
    np.testing.assert_allclose(loss, (equal + other) / 2, rtol=1e-5)


def test_gradient_goes_through_queries_and_stores():
    def reference(x, _):
        def retrieve(queries, stored):
            mixed = g.softmax_rows(8 * queries @ stored.T) @ stored
            return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

        def loob(a, b):
            logits = 30 * a @ b.T
            return (g.lse(g.off_diagonal(logits)) - np.diagonal(logits)).mean() / 30

        i, t = x["image"], x["text"]
        by_images = loob(retrieve(i, i), retrieve(t, i))
        return by_images + loob(retrieve(t, t), retrieve(i, t))

    g.check_gradient(CLOOB(), g.random_rows("image", "text"), reference)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"cloob.beta=-8 must be a positive number"):
        CLOOB(beta=-8)
