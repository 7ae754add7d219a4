"""Contrast beside captioning."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models
from jaxclip.objectives.coca import CoCa
from jaxclip.objectives.contrastive import Contrastive
from tests.objectives import fixture_g as g

TOWER = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
SIZES = models.CLIPConfig(
    models.ImageConfig(image_size=8, patch_size=4, **TOWER),
    models.TextConfig(vocab_size=11, context_length=6, **TOWER),
    embed_dim=2,
)
TEXTS = jnp.array([[3, 4, 5, 2, 0, 0], [7, 0, 9, 1, 6, 2], [8, 2, 0, 0, 0, 0]], jnp.int32)
PIXELS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)), jnp.float32)


@functools.cache
def setting(num_queries=5, causal=True):
    objective = CoCa(num_queries=num_queries, from_embeddings=not causal)
    text = dataclasses.replace(SIZES.text, causal=causal)
    model = models.build(dataclasses.replace(SIZES, text=text))
    params = g.drawn(model.init)
    params["objective"] = g.own_params(objective, SIZES, 1)

    @jax.jit
    def outputs(params, pixels, texts):
        image = model.image_features(params, pixels)
        text = model.text_features(params, texts, hidden=(0,))
        return {
            "image": g.I,
            "text": g.T,
            "image_tokens": image.tokens,
            "text_tokens": text.tokens,
            "text_hidden_0": text.hidden[0],
            "text_mask": text.valid,
            "text_input": texts,
        }

    return objective, params, functools.partial(outputs, params)


def test_numbers_of_the_specification():
    logits = jnp.array([[[2.0, 0, 0], [0, 1.0, 0], [9.0, 0, 0]]])
    real = jnp.array([[True, True, False]])
    sums = losses.token_sums(logits, jnp.array([[0, 2, 2]]), real)
    assert float(sums["nll"][0]) / 2 == pytest.approx(0.8954947, rel=1e-6)
    assert sums["tokens"].tolist() == [2.0] and sums["hits"].tolist() == [1.0]


def test_equal_logits_cost_ln_v_a_token():
    objective, params, outputs = setting()
    own = {**params["objective"]}
    own["decoder"] = {**own["decoder"], "logits": {"kernel": jnp.zeros((16, 11))}}
    loss, metrics, _ = g.value(objective, outputs(PIXELS, TEXTS), g.context(sizes=SIZES), own)
    assert float(metrics["caption"]) == pytest.approx(math.log(11), rel=1e-6)
    assert float(loss) == pytest.approx(0.1081597 + 2 * math.log(11), rel=1e-6)


def test_every_token_up_to_the_last_counts_and_no_padding():
    objective, params, outputs = setting()
    ctx, own, made = g.context(sizes=SIZES), params["objective"], outputs(PIXELS, TEXTS)
    rows, logits = jax.jit(
        lambda made: (objective.rows(own, made, ctx), objective.logits(own, made, SIZES))
    )(made)
    assert rows["tokens"].tolist() == [3, 5, 1]  # 0 within is a token
    logits = np.asarray(logits, np.float64)
    nll = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
    picked = [nll[row, i, TEXTS[row, i + 1]] for row, n in enumerate((3, 5, 1)) for i in range(n)]
    _, metrics, _ = g.value(objective, made, ctx, own)
    assert float(metrics["caption"]) == pytest.approx(np.mean(picked), rel=1e-5)


def test_weight_0_is_clip():
    _, params, outputs = setting()
    made, ctx = outputs(PIXELS, TEXTS), g.context(sizes=SIZES)
    loss, _, _ = g.value(CoCa(caption_weight=0.0, num_queries=5), made, ctx, params["objective"])
    assert float(loss) == pytest.approx(float(g.value(Contrastive(), made, ctx)[0]), rel=1e-5)


@pytest.mark.parametrize(("num_queries", "causal"), [(5, True), (0, False)])
def test_logits_see_the_past_and_the_picture(num_queries, causal):
    objective, params, outputs = setting(num_queries, causal)
    assert ("pooler" in params["objective"]) == bool(num_queries)
    logits = jax.jit(lambda made: objective.logits(params["objective"], made, SIZES))
    before = logits(outputs(PIXELS, TEXTS))
    after = logits(outputs(PIXELS, TEXTS.at[1, 3].set(10)))
    np.testing.assert_array_equal(after[1, :3], before[1, :3])
    assert (np.abs(after[1, 3:] - before[1, 3:]).max(-1) > 1e-6).all()
    np.testing.assert_array_equal(after[::2], before[::2])
    other = logits(outputs(PIXELS.at[1, 7, 7].add(1.0), TEXTS))
    assert (np.abs(other[1] - before[1]).max(-1) > 1e-6).all()


def test_a_text_tower_that_sees_the_future_is_refused():
    sizes = models.CLIPConfig(text=models.TextConfig(causal=False, **TOWER))
    with pytest.raises(ValueError, match=r"set coca's from_embeddings=True or model\.text\.causal"):
        CoCa().check(sizes, None)
    CoCa(from_embeddings=True).check(sizes, None)


@pytest.mark.parametrize(
    "options", [{"caption_weight": -1}, {"num_queries": -1}, {"depth": float("nan")}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"coca\.\w+=.* must be a (whole )?number of at least 0"):
        CoCa(**options)
