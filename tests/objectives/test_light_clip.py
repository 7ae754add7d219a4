"""Softened targets, matches of words, masked words."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses
from jaxclip.objectives.light_clip import LightCLIP, softened
from tests.objectives import fixture_g as g
from tests.objectives.test_coca import SIZES, TEXTS

RNG = np.random.default_rng(0)
REAL = jnp.arange(6) <= jnp.asarray([3, 5, 1])[:, None]
MADE = {
    "image": g.I,
    "text": g.T,
    "image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 16)), jnp.float32),
    "text_tokens": jnp.asarray(RNG.normal(size=(3, 6, 16)), jnp.float32),
    "text_hidden_0": jnp.asarray(RNG.normal(size=(3, 6, 16)), jnp.float32),
    "text_mask": REAL,
    "text_input": TEXTS,
}
ALONE = {"matching": 0.0, "masked_words": 0.0}


@functools.cache
def setting(**options):
    objective = LightCLIP(features=5, depth=1, mask_ratio=0.5, **options)
    return objective, g.own_params(objective, SIZES)


def test_softness_0_is_clip():
    loss, _, _ = g.value(LightCLIP(softness=0.0, **ALONE), MADE)
    assert float(loss) == pytest.approx(0.1081597, rel=1e-5)
    ramp = LightCLIP(softness=[[0, 0.0], [10, 0.5]], **ALONE)
    _, metrics, _ = g.value(ramp, MADE, g.context(step=5))
    assert float(metrics["softness"]) == pytest.approx(0.25)


def test_shared_evenly_it_is_label_smoothing():
    """Where the others are alike, a of the target is smoothing of a B / (B - 1)."""
    logits = jnp.asarray([[3.0, 1.0, 1.0], [0.5, 2.0, 0.5], [0.0, 0.0, 1.0]])
    smooth = 0.2 * 3 / 2
    target = (1 - smooth) * jnp.eye(3) + smooth / 3
    expected = float(jnp.mean(losses.soft_cross_entropy(logits, target)))
    assert float(softened(logits, 0.2)) == pytest.approx(expected, rel=1e-6)


def test_value_and_gradient():
    def reference(arrays, base):
        total = 0.0
        for flip in (False, True):
            logits, held = (10.0 * a["image"] @ a["text"].T for a in (arrays, base))
            logits, held = (logits.T, held.T) if flip else (logits, held)
            target = 0.3 * g.softmax_rows(g.off_diagonal(held)) + 0.7 * np.eye(len(logits))
            total += (g.lse(logits) - (target * logits).sum(1)).mean() / 2
        return total

    g.check_gradient(LightCLIP(softness=0.3, **ALONE), g.random_rows("image", "text"), reference)


def test_words_find_their_patches_as_in_filip():
    objective, params = setting(softness=0.0, masked_words=0.0)
    _, metrics, _ = g.value(objective, MADE, g.context(sizes=SIZES), params)
    maps = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def mapped(tower):
        x = np.asarray(MADE[f"{tower}_tokens"], np.float64)
        x = x @ maps[tower]["out"]["kernel"] + maps[tower]["out"]["bias"]
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    every = np.einsum("ipd,jqd->ijpq", mapped("image"), mapped("text")).max(2)
    real = np.asarray(REAL)[None]
    logits = 10 * (every * real).sum(2) / real.sum(2)
    expected = (g.lse(logits) + g.lse(logits.T) - 2 * np.diagonal(logits)).mean() / 2
    assert float(metrics["matching"]) == pytest.approx(expected, rel=1e-4)


def test_masked_words():
    objective, params = setting(softness=0.0, matching=0.0)
    ctx = g.context(sizes=SIZES)
    zero = {**params["decoder"], "logits": {"kernel": jnp.zeros((16, 11))}}
    loss, metrics, _ = g.value(objective, MADE, ctx, {**params, "decoder": zero})
    assert float(metrics["masked_words"]) == pytest.approx(math.log(11), rel=1e-5)
    assert float(loss) == pytest.approx(0.1081597 + math.log(11), rel=1e-5)
    rows = jax.jit(lambda made: objective.rows(params, made, ctx))
    before = rows(MADE)
    drawn = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (6,)))(ctx.row_keys())
    chosen = np.asarray(drawn & REAL)
    np.testing.assert_array_equal(before["tokens"], chosen.sum(1))
    # A masked word is not seen, another one is, and so is the picture.
    row = int(np.argmax(chosen.any(1) & (~chosen & np.asarray(REAL)).any(1)))
    masked = int(np.argmax(chosen[row]))
    seen = int(np.argmax(~chosen[row] & np.asarray(REAL)[row]))
    hidden = MADE["text_hidden_0"]
    same = rows({**MADE, "text_hidden_0": hidden.at[row, masked].multiply(-1.0)})
    np.testing.assert_array_equal(same["nll"], before["nll"])
    for change in (
        {"text_hidden_0": hidden.at[row, seen].multiply(-1.0)},
        {"image": MADE["image"].at[row].multiply(-1.0)},
    ):
        assert abs(rows({**MADE, **change})["nll"][row] - before["nll"][row]) > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softness": 1.5}, r"light_clip\.softness=1.5 must be at most 1"),
        ({"softness": "much"}, r"light_clip\.softness='much' is neither a number nor"),
        ({"mask_ratio": 0}, r"light_clip\.mask_ratio=0 must be a number in \(0, 1\]"),
        ({"depth": 0}, r"light_clip\.depth=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LightCLIP(**options)
