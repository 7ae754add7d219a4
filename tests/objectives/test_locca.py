"""A decoder that writes captions word by word, or all words at once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.objectives.locca import LocCa
from tests.objectives import fixture_g as g
from tests.objectives.test_coca import SIZES, TEXTS

RNG = np.random.default_rng(0)
IMAGE = jnp.asarray(RNG.normal(size=(3, 4, 16)), jnp.float32)
WORDS = jnp.asarray(RNG.normal(size=(11, 16)), jnp.float32)
REAL = jnp.arange(6) <= jnp.asarray([3, 5, 1])[:, None]


def outputs(texts=TEXTS, image=IMAGE):
    """The embedding of a token stands for the tower's."""
    hidden = WORDS[texts] + 0.1 * jnp.arange(6.0)[:, None]
    own = {"image_tokens": image, "text_hidden_0": hidden, "text_mask": REAL, "text_input": texts}
    return {"image": g.I, "text": g.T, **own}


@functools.cache
def setting(**options):
    objective = LocCa(zero_start=False, **options)
    params = g.own_params(objective, SIZES)
    run = jax.jit(lambda made, at_once: objective.logits(params, made, at_once, SIZES))
    return objective, params, run


def test_the_untrained_output_layer_costs_ln_v_a_token():
    objective, params, _ = setting()
    params = {**params, "logits": jnp.zeros_like(params["logits"])}
    loss, metrics, _ = g.value(objective, outputs(), g.context(sizes=SIZES), params)
    assert float(metrics["caption"]) == pytest.approx(math.log(11), rel=1e-5)
    assert float(loss) == pytest.approx(0.1081597 + math.log(11), rel=1e-5)
    start = jax.jit(lambda key: LocCa().init_params(key, SIZES)["logits"])(jax.random.key(0))
    assert start.shape == (16, 11) and not start.any()


def test_word_by_word_a_place_sees_the_words_before_and_the_picture():
    _, _, run = setting()
    causal = jnp.zeros(3, bool)
    before = run(outputs(), causal)
    after = run(outputs(TEXTS.at[1, 3].set(10)), causal)
    np.testing.assert_array_equal(after[1, :4], before[1, :4])  # place i is about token i
    assert (np.abs(after[1, 4:] - before[1, 4:]).max(-1) > 1e-6).all()
    other = run(outputs(image=IMAGE.at[1, 2].multiply(-1.0)), causal)
    assert (np.abs(other[1] - before[1]).max(-1) > 1e-6).all()
    np.testing.assert_array_equal(other[::2], before[::2])


def test_all_at_once_the_words_are_not_seen():
    _, _, run = setting()
    at_once = jnp.ones(3, bool)
    before = run(outputs(), at_once)
    np.testing.assert_array_equal(run(outputs(TEXTS[::-1]), at_once), before)
    other = run(outputs(image=IMAGE.at[1, 2].multiply(-1.0)), at_once)
    assert (np.abs(other[1] - before[1]).max(-1) > 1e-6).all()
    assert np.abs(before[0, 0] - before[0, 1]).max() > 1e-6  # they have positions


def test_rows_are_drawn_and_counted_apart():
    objective, params, run = setting()
    ctx, made = g.context(sizes=SIZES), outputs()
    loss, metrics, _ = g.value(objective, made, ctx, params)
    chosen = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5))(ctx.row_keys())
    logits = np.asarray(run(made, chosen), np.float64)
    nll = g.lse(logits) - np.take_along_axis(logits, np.asarray(TEXTS)[:, :, None], 2)[:, :, 0]
    assert float(metrics["caption"]) == pytest.approx(nll[np.asarray(REAL)].mean(), rel=1e-5)
    assert 0 < int(chosen.sum()) < 3
    at_once = np.asarray(chosen)[:, None] & np.asarray(REAL)
    assert float(metrics["caption_parallel"]) == pytest.approx(nll[at_once].mean(), rel=1e-5)
    assert float(loss) == pytest.approx(0.1081597 + float(metrics["caption"]), rel=1e-5)


def test_weight_0_is_clip():
    _, params, _ = setting()
    made, ctx = outputs(), g.context(sizes=SIZES)
    loss, _, _ = g.value(LocCa(caption_weight=0.0), made, ctx, params)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)


@pytest.mark.parametrize("options", [{"caption_weight": -1}, {"parallel": 2.0}, {"depth": -1}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"locca\.\w+=.* must be a (whole )?number"):
        LocCa(**options)
