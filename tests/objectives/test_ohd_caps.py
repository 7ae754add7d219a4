"""OHD-Caps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import fields
from jaxclip.objectives.ohd_caps import OHDCaps
from tests.objectives import fixture_g as g

ROWS = g.with_negatives(g.I, g.T, g.N[:, None])


def test_values_on_fixture_g():
    loss, metrics, _ = g.value(OHDCaps(), ROWS)
    assert float(metrics["base"]) == pytest.approx(0.1099214, abs=1e-6)
    assert float(metrics["true_margin"]) == pytest.approx(0.7922345, abs=1e-5)
    assert float(metrics["batch_margin"]) == pytest.approx(3.5865857, abs=1e-5)
    assert float(loss) == pytest.approx(0.9856854, abs=1e-5)
    assert float(metrics["accuracy_against_negatives"]) == 1.0


def test_without_negatives_and_margins_it_is_clip():
    none = g.with_negatives(g.I, g.T, g.N[:, None], [[False]] * 3)
    for rows_extended in ("text", "image"):
        objective = OHDCaps(1, rows_extended=rows_extended, true_margin=0.0, batch_margin=0.0)
        loss, _, _ = g.value(objective, none)
        assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


@pytest.mark.parametrize("side", ["text", "image"])
def test_gradient_is_that_of_the_formula(side):
    def reference(x, _):
        image, text, wrong = x["image"], x["text"], x["negatives/text"]
        logits, against = 10 * image @ text.T, 10 * np.einsum("bd,bmd->bm", image, wrong)
        own = np.diagonal(logits)
        rows = {"image": logits, "text": logits.T}
        rows[side] = np.concatenate([rows[side], against], 1)
        base = (g.lse(rows["image"]) + g.lse(rows["text"]) - 2 * own).mean() / 2
        others = (10 * text @ image.T)[~np.eye(6, dtype=bool)].reshape(6, 5)
        below = np.concatenate([others, against], 1)
        true_margin = np.maximum(2 + below - own[:, None], 0).mean()
        batch_margin = np.maximum(2 + against - others.max(1, keepdims=True), 0).mean()
        return base + 0.3 * true_margin + 0.4 * batch_margin

    given = g.random_rows("image", "text")
    negatives = g.random_rows("negatives", size=12, seed=3)["negatives"]
    given = g.with_negatives(given["image"], given["text"], negatives.reshape(6, 2, 5))
    objective = OHDCaps(2, rows_extended=side, true_margin=0.3, batch_margin=0.4, threshold=2.0)
    g.check_gradient(objective, given, reference)


def test_negatives_that_could_not_be_made_are_left_out():
    wrong = jnp.stack([g.I, g.N], axis=1)
    rows = g.with_negatives(g.I, g.T, wrong, [[False, True]] * 3)
    loss, metrics, _ = g.value(OHDCaps(2), rows)
    assert float(loss) == pytest.approx(0.9856854, abs=1e-5)
    assert float(metrics["accuracy_against_negatives"]) == 1.0
    gradient = jax.grad(lambda x: g.value(OHDCaps(2), {**rows, "image": x})[0])(g.I)
    assert np.isfinite(gradient).all()


def test_it_asks_for_the_negatives_of_a_record():
    assert OHDCaps().fields == {"negatives/text": fields.Negatives(27, "swap_words")}


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"ohd_caps.rows_extended='both'; use 'text' or 'image'"):
        OHDCaps(rows_extended="both")
