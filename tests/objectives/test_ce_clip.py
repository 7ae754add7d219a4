"""CE-CLIP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.ce_clip import CEClip
from tests.objectives import fixture_g as g

ROWS = g.with_negatives(g.I, g.T, g.N[:, None])
ONE = CEClip(1)
START = ONE.init_state(models.CLIPConfig())


def test_without_its_parts_it_is_negclip():
    loss, metrics, _ = g.value(CEClip(1, rank=0.0, intra=0.0), ROWS, state=START)
    assert float(loss) == float(metrics["base"]) == pytest.approx(0.3580037, abs=1e-6)


def test_the_threshold_is_the_gap_of_the_step_before():
    # Logits of the negatives are 0, 5, 0 and of the pairs 10 cos 20 = 9.3969: no gap is below 0.
    _, metrics, state = g.value(ONE, ROWS, state=START)
    assert float(metrics["rank"]) == 0.0
    gaps = 9.396926 - np.array([0.0, 5.0, 0.0])
    assert float(state["threshold"][0]) == pytest.approx(gaps.mean(), abs=1e-5)
    _, metrics, state = g.value(ONE, ROWS, state=state)
    expected = np.maximum(gaps.mean() - gaps, 0).mean()
    assert float(metrics["rank"]) == pytest.approx(expected, abs=1e-5)


def test_a_negative_gap_makes_no_negative_threshold():
    rows = {**ROWS, "negatives/text": g.I[:, None]}
    _, metrics, state = g.value(ONE, rows, state=START)
    assert float(metrics["rank"]) == pytest.approx(10 - 9.396926, abs=1e-5)
    assert float(state["threshold"][0]) == 0.0


def test_the_positive_of_a_caption_is_its_image():
    _, metrics, _ = g.value(ONE, ROWS, state=START)
    texts, negatives = np.asarray(g.T, np.float64), np.asarray(g.N, np.float64)
    wrong = 10 * (texts * negatives).sum(1)
    expected = np.logaddexp(9.396926, wrong) - 9.396926
    assert float(metrics["intra"]) == pytest.approx(expected.mean(), abs=1e-5)


def test_gradient_is_that_of_the_formula_and_thresholds_are_held():
    threshold = np.array([4.0, 9.0], np.float32)

    def reference(x, _):
        image, text, wrong = x["image"], x["text"], x["negatives/text"]
        logits = 10 * image @ np.concatenate([text, wrong.reshape(-1, 5)]).T
        own = np.diagonal(logits)
        base = (g.lse(logits) + g.lse(logits[:, :6].T) - 2 * own).mean() / 2
        of_image, of_text = (10 * np.einsum("bd,bmd->bm", a, wrong) for a in (image, text))
        rank = np.maximum(threshold + of_image - own[:, None], 0).mean()
        intra = (g.lse(np.concatenate([own[:, None], of_text], 1)) - own).mean()
        return base + 0.2 * rank + 0.5 * intra

    given = g.random_rows("image", "text")
    negatives = g.random_rows("negatives", size=12, seed=3)["negatives"]
    given = g.with_negatives(given["image"], given["text"], negatives.reshape(6, 2, 5))
    g.check_gradient(CEClip(2, intra=0.5), given, reference, state={"threshold": threshold})


def test_negatives_that_could_not_be_made_are_left_out():
    state = {"threshold": np.array([8.0, 3.0], np.float32)}
    rows = g.with_negatives(g.I, g.T, jnp.stack([g.N, g.I], axis=1), [[True, False]] * 3)
    loss, _, new = g.value(CEClip(2), rows, state=state)
    expected, _, alone = g.value(ONE, ROWS, state={"threshold": state["threshold"][:1]})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(new["threshold"], [float(alone["threshold"][0]), 3.0], rtol=1e-5)

    def gradient(rows):
        return jax.grad(lambda x: g.value(CEClip(2), {**rows, "text": x}, state=state)[0])(g.T)

    assert np.isfinite(gradient(rows)).all()
    none = g.with_negatives(g.I, g.T, rows["negatives/text"], [[False, False]] * 3)
    loss, _, new = g.value(CEClip(2), none, state=state)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    np.testing.assert_array_equal(new["threshold"], state["threshold"])
    assert np.isfinite(gradient(none)).all()


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"ce_clip.rank='high' must be a number of at least 0"):
        CEClip(rank="high")
