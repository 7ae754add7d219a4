"""Hard negative captions as further columns for the images."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.objectives.negclip import NegCLIP
from tests.objectives import fixture_g as g


def outputs(negatives):
    return g.with_negatives(g.I, g.T, negatives)


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_value_on_fixture_g(implementation):
    loss, _, _ = g.value(NegCLIP(implementation=implementation), outputs(g.N[:, None]))
    assert float(loss) == pytest.approx(0.3580037, abs=1e-6)


def test_no_negatives_and_far_ones_are_clip():
    for negatives in (g.N[:, None][:, :0], jnp.zeros((3, 1, 2)) - 50.0 * g.I[1]):
        images = jnp.tile(g.I[1], (3, 1)) if negatives.size else g.I
        loss, _, _ = g.value(NegCLIP(), outputs(negatives) | {"image": images})
        expected = g.clip(np.asarray(images, np.float64), np.asarray(g.T, np.float64), 10.0)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradient_is_that_of_the_formula():
    def reference(x, _):
        negatives = x["negatives/text"].reshape(-1, 5)
        logits = 10 * x["image"] @ np.concatenate([x["text"], negatives]).T
        rows = g.lse(logits) - np.diagonal(logits)
        columns = g.lse(logits[:, :6], 0) - np.diagonal(logits)
        return (rows.mean() + columns.mean()) / 2

    given = g.random_rows("image", "text")
    negatives = g.random_rows("negatives", size=12, seed=3)["negatives"]
    given = g.with_negatives(given["image"], given["text"], negatives.reshape(6, 2, 5))
    g.check_gradient(NegCLIP(2), given, reference)


@pytest.mark.parametrize("implementation", ["plain", "blockwise"])
def test_a_negative_that_could_not_be_made_is_no_column(implementation):
    wrong = jnp.stack([g.N, g.I], axis=1)  # the second ones, which would be hard, are not there
    valid = [[True, False]] * 3
    rows = g.with_negatives(g.I, g.T, wrong, valid)
    loss, metrics, _ = g.value(NegCLIP(2, implementation=implementation), rows)
    assert float(loss) == pytest.approx(0.3580037, abs=1e-6)
    _, expected, _ = g.value(NegCLIP(), outputs(g.N[:, None]))
    assert float(metrics.pop("negatives")) == 0.5 and float(expected.pop("negatives")) == 1
    assert metrics == expected
    none = g.with_negatives(g.I, g.T, g.N[:, None], [[False]] * 3)
    loss, metrics, _ = g.value(NegCLIP(implementation=implementation), none)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5) and metrics["negatives"] == 0


def test_it_asks_for_the_negatives_of_a_record():
    assert NegCLIP(3).fields == {"negatives/text": fields.Negatives(3, "swap_words")}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"negclip.count=0 must be a whole number of at least 1"):
        NegCLIP(0)
