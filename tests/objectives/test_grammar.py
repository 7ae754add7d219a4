"""Sound captions and broken ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.grammar import Grammar, sound
from tests.objectives import fixture_g as g

RNG = np.random.default_rng(0)
PARAMS = {
    "in": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32),
    "out": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32),
}
MADE = {
    "image": g.I,
    "text": g.T,
    "text_pooled": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32),
    "broken/text_pooled": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32),
}


def logits(pooled):
    return np.maximum(pooled @ np.asarray(PARAMS["in"], float), 0) @ np.asarray(
        PARAMS["out"], float
    )


def test_value_in_float64():
    loss, metrics, _ = g.value(Grammar(grammar_weight=0.5), MADE, params=PARAMS)
    every = [logits(np.asarray(MADE[key], float)) for key in ("text_pooled", "broken/text_pooled")]
    nll = [(g.lse(x) - x[:, label]).mean() for x, label in zip(every, (1, 0), strict=True)]
    assert float(metrics["grammar"]) == pytest.approx(np.mean(nll), rel=1e-5)
    assert float(loss) == pytest.approx(0.1081597 + 0.5 * np.mean(nll), rel=1e-5)
    hits = [(x.argmax(1) == label).mean() for x, label in zip(every, (1, 0), strict=True)]
    assert float(metrics["grammar_accuracy"]) == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(
        jax.jit(sound)(PARAMS, MADE["text_pooled"]), g.softmax_rows(every[0])[:, 1], rtol=1e-5
    )


def test_weight_0_is_clip_and_bad_options_are_refused():
    loss, _, _ = g.value(Grammar(grammar_weight=0.0), MADE, params=PARAMS)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    assert Grammar(ops="swap_words").fields["broken/text"].ops == "swap_words"
    with pytest.raises(ValueError, match=r"grammar\.width=0"):
        Grammar(width=0)
