"""Patches that are rebuilt from the text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.objectives.coca import CoCa
from jaxclip.objectives.sycoca import SyCoCa, by_score
from tests.objectives import fixture_g as g
from tests.objectives.test_coca import SIZES, TEXTS

RNG = np.random.default_rng(0)
MADE = {
    "image": g.I,
    "text": g.T,
    "image_tokens": jnp.asarray(RNG.normal(size=(3, 4, 16)), jnp.float32),
    "image_projected": jnp.asarray(RNG.normal(size=(3, 4, 2)), jnp.float32),
    "image_input": jnp.asarray(RNG.integers(0, 256, (3, 8, 8, 3)), jnp.uint8),
    "text_hidden_0": jnp.asarray(RNG.normal(size=(3, 6, 16)), jnp.float32),
    "text_tokens": jnp.asarray(RNG.normal(size=(3, 6, 16)), jnp.float32),
    "text_mask": jnp.arange(6) <= jnp.asarray([3, 5, 1])[:, None],
    "text_input": TEXTS,
}
OPTIONS = {"num_queries": 0, "from_embeddings": True, "depth": 1}


@functools.cache
def setting(**options):
    objective = SyCoCa(**OPTIONS, rebuild_depth=1, **options)
    params = g.own_params(objective, SIZES)
    rows = jax.jit(lambda params, made: objective.rows(params, made, g.context(sizes=SIZES)))
    return objective, params, rows


def test_without_its_parts_it_is_coca():
    objective, params, _ = setting(attend_share=1.0, mask_share=0.0)
    ctx = g.context(sizes=SIZES)
    loss, metrics, _ = g.value(objective, MADE, ctx, params)
    expected, _, _ = g.value(CoCa(**OPTIONS), MADE, ctx, params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["rebuilt"]) == 0.0


def test_the_order_of_patches_is_that_of_directions():
    order = by_score(MADE["image_projected"], g.T)
    scores = np.einsum("bnd,bd->bn", *map(np.asarray, (MADE["image_projected"], g.T)))
    scores /= np.linalg.norm(MADE["image_projected"], axis=-1)
    np.testing.assert_array_equal(order, np.argsort(-scores, axis=1))
    scaled = MADE["image_projected"] * jnp.asarray([1.0, 5.0, 0.1, 2.0])[:, None]
    np.testing.assert_array_equal(by_score(scaled, g.T), order)


def test_the_pixels_of_masked_patches_alone_are_told():
    _, params, rows = setting(attend_share=1.0, mask_share=0.5)
    order = np.asarray(by_score(MADE["image_projected"], g.T))
    # An untrained output layer tells the mean: what is left is the variance, 1.
    zero = {**params["rebuilder"], "logits": {"kernel": jnp.zeros((16, 48))}}
    untrained = rows({**params, "rebuilder": zero}, MADE)["rebuilt"]
    np.testing.assert_allclose(untrained, 1.0, atol=1e-3)
    before = rows(params, MADE)
    pixels, tokens = MADE["image_input"], MADE["image_tokens"]

    def with_pixels(place):
        y, x = divmod(int(place), 2)
        at = (0, slice(4 * y, 4 * y + 4), slice(4 * x, 4 * x + 4))
        return {**MADE, "image_input": pixels.at[at].set(pixels[at][::-1])}

    masked, shown = order[0, 0], order[0, 3]
    for made in (with_pixels(shown), {**MADE, "image_tokens": tokens.at[0, masked].multiply(-1.0)}):
        np.testing.assert_allclose(rows(params, made)["rebuilt"], before["rebuilt"], rtol=1e-6)
    words = MADE["text_tokens"]
    for made in (
        with_pixels(masked),
        {**MADE, "image_tokens": tokens.at[0, shown].multiply(-1.0)},
        {**MADE, "text_tokens": words.at[0, 1].multiply(-1.0)},
    ):
        assert abs(rows(params, made)["rebuilt"][0] - before["rebuilt"][0]) > 1e-5
    padding = {**MADE, "text_tokens": words.at[0, 4].multiply(-1.0)}
    np.testing.assert_allclose(rows(params, padding)["rebuilt"], before["rebuilt"])


def test_the_caption_is_written_from_the_best_patches():
    _, params, rows = setting(attend_share=0.5, mask_share=0.0)
    order = np.asarray(by_score(MADE["image_projected"], g.T))
    before, tokens = rows(params, MADE)["nll"], MADE["image_tokens"]
    other = {**MADE, "image_tokens": tokens.at[0, order[0, 3]].multiply(-1.0)}
    np.testing.assert_array_equal(rows(params, other)["nll"], before)
    best = {**MADE, "image_tokens": tokens.at[0, order[0, 0]].multiply(-1.0)}
    assert abs(rows(params, best)["nll"][0] - before[0]) > 1e-5


def test_what_it_refuses():
    assert SyCoCa().whole_views == {"image"}  # patches are rebuilt at their places
    for options, message in (
        ({"mask_share": 2}, r"sycoca\.mask_share=2 must be a number in \[0, 1\]"),
        ({"attend_share": 0}, r"sycoca\.attend_share=0 must be a number in \(0, 1\]"),
        ({"rebuild_depth": 0}, r"sycoca\.rebuild_depth=0"),
        ({"drop_image": 2}, r"sycoca\.drop_image=2"),
    ):
        with pytest.raises(ValueError, match=message):
            SyCoCa(**options)
    with pytest.raises(ValueError, match="from_embeddings=True"):
        text = models.TextConfig(causal=False, width=16, num_heads=2)
        SyCoCa().check(models.CLIPConfig(text=text), None)
