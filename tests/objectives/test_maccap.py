"""A caption decoder that is trained on texts alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.maccap import MacCap, noisy, subregion_vectors
from tests.objectives import fixture_g as g
from tests.objectives.test_coca import SIZES, TEXTS

MADE = {
    "image": g.I,
    "text": g.T,
    "text_hidden_0": jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 16)), jnp.float32),
    "text_mask": jnp.arange(6) <= jnp.asarray([3, 5, 1])[:, None],
    "text_input": TEXTS,
}


@functools.cache
def setting(**options):
    objective = MacCap(**options)
    return objective, g.own_params(objective, SIZES)


def test_noise():
    keys = jax.random.split(jax.random.key(0), 4000)
    vectors = jnp.tile(jnp.eye(8)[:1], (4000, 1))
    np.testing.assert_array_equal(noisy(vectors, 0.0, keys)[0], vectors[0])
    made = noisy(vectors, 0.016, keys)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, rtol=1e-5)
    spread = np.asarray(made[:, 1:] / made[:, :1])  # before unit length: noise / (1 + noise)
    assert np.var(spread) == pytest.approx(0.016, rel=0.1)


def test_untrained_it_costs_ln_v_and_the_texts_alone_are_seen():
    objective, params = setting()
    zero = {**params, "decoder": {**params["decoder"], "logits": {"kernel": jnp.zeros((16, 11))}}}
    ctx = g.context(sizes=SIZES)
    loss, metrics, _ = g.value(objective, MADE, ctx, zero)
    assert float(loss) == float(metrics["caption"]) == pytest.approx(math.log(11), rel=1e-5)
    assert not objective.needs and "image" not in objective.row_needs
    both, _, _ = g.value(MacCap(contrastive=1.0), MADE, ctx, zero)
    assert float(both) == pytest.approx(math.log(11) + 0.1081597, rel=1e-5)


def test_the_decoder_sees_the_words_before_and_the_vector():
    objective, params = setting(variance=0.0)
    run = jax.jit(
        lambda given, text: objective.decode(
            params, text, objective.tokens_of(params, given), SIZES
        )
    )
    before = run(g.T, MADE["text_hidden_0"])
    after = run(g.T, MADE["text_hidden_0"].at[1, 3].multiply(-1.0))
    np.testing.assert_array_equal(after[1, :3], before[1, :3])
    assert (np.abs(after[1, 3:] - before[1, 3:]).max(-1) > 1e-6).all()
    other = run(g.T.at[1].multiply(-1.0), MADE["text_hidden_0"])
    assert (np.abs(other[1] - before[1]).max(-1) > 1e-6).all()
    # What it is trained on is the row's own vector, without a gradient to it.
    ctx = g.context(sizes=SIZES)
    sums = jax.jit(lambda made: objective.rows(params, made, ctx))(MADE)
    logits = np.asarray(before[0, :3], np.float64)
    nll = (g.lse(logits) - logits[np.arange(3), np.asarray(TEXTS)[0, 1:4]]).sum()
    assert float(sums["nll"][0]) == pytest.approx(nll, rel=1e-4)


def test_subregions():
    rng = np.random.default_rng(0)
    attention = g.softmax_rows(rng.normal(size=(2, 5, 5)))
    tokens = rng.normal(size=(2, 5, 3))
    vectors, chosen = subregion_vectors(jnp.asarray(attention), jnp.asarray(tokens), 2)
    units = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    for row in range(2):
        best = np.argsort(-attention[row, 0])[:2]
        np.testing.assert_array_equal(chosen[row], best)
        expected = g.softmax_rows(attention[row, best]) @ units[row]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors[row], expected, atol=1e-5)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"maccap\.variance=-1 must be a number of at least 0"):
        MacCap(variance=-1)
