"""Dropout and patch dropout: a row draws by its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import dropout
from tests.models import small

CONFIG = small.change(
    small.CLIP, image={"dropout": 0.3, "patch_dropout": 0.5}, text={"dropout": 0.3}
)


def test_a_row_draws_by_its_key_alone():
    model = models.build(CONFIG)
    params = small.params_for(model)
    images, tokens = small.batch(CONFIG)
    keys = jax.random.split(jax.random.key(1), 4)

    @jax.jit
    def run(params, images, tokens, keys):
        image = model.image_features(params, images, train=True, keys=keys, hidden=(0,))
        text = model.text_features(params, tokens, train=True, keys=keys)
        return image.embedding, text.embedding, image.tokens

    whole = run(params, images, tokens, keys)
    assert whole[2].shape == (4, 2, 16)  # half of the patches
    parts = [run(params, images[i : i + 2], tokens[i : i + 2], keys[i : i + 2]) for i in (0, 2)]
    for a, *b in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(a, np.concatenate(b), atol=2e-6)
    turned = run(params, images[::-1], tokens[::-1], keys[::-1])
    np.testing.assert_allclose(whole[0], turned[0][::-1], atol=2e-6)
    other = run(params, images, tokens, jax.random.split(jax.random.key(2), 4))
    for a, b in zip(whole[:2], other[:2], strict=True):
        assert np.abs(a - b).max(axis=1).min() > 1e-3
    # Without train nothing is dropped.
    plain = models.build(small.CLIP)
    np.testing.assert_array_equal(
        jax.jit(lambda p: model.image_features(p, images).embedding)(params),
        jax.jit(plain.encode_image)(params, images),
    )


def test_rates_of_zero_need_no_keys_and_others_do():
    images, tokens = small.batch(CONFIG)
    plain, model = models.build(small.CLIP), models.build(CONFIG)
    params = jax.eval_shape(plain.init, jax.random.key(0))

    def shape(model, **options):
        return jax.eval_shape(lambda p: model.image_features(p, images, **options), params)

    assert shape(plain, train=True).tokens.shape == (4, 4, 16)
    with pytest.raises(ValueError, match=r"model\.image\.dropout=0\.3, model\.image\.patch_drop"):
        shape(model, train=True)
    for keys in (jax.random.key(0), jax.random.split(jax.random.key(0), 3)):
        with pytest.raises(ValueError, match="one typed PRNG key for each of the 4 rows"):
            shape(model, train=True, keys=keys)
    with pytest.raises(ValueError, match=r"model\.text\.dropout=0\.3 needs keys="):
        jax.eval_shape(lambda p: model.text_features(p, tokens, train=True), params)
    with pytest.raises(ValueError, match=r"model\.image\.dropout=1\.0; use a rate from 0"):
        small.change(small.CLIP, image={"dropout": 1.0})


def test_dropout_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 64)
    x = dropout.dropout(jnp.ones((64, 50, 20)), keys, 0.25)
    values, counts = np.unique(np.asarray(x), return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3], rtol=1e-6)
    assert counts[0] / x.size == pytest.approx(0.25, abs=0.01)
    assert x.mean() == pytest.approx(1, abs=0.01)


def test_random_patches_are_subsets_of_equal_chance():
    keys = jax.random.split(jax.random.key(0), 2000)
    kept = np.asarray(dropout.random_patches(keys, 10, 0.7))
    assert kept.shape == (2000, 3) and kept.dtype == np.int32
    assert (np.diff(kept, axis=1) > 0).all()
    counts = np.bincount(kept.ravel(), minlength=10)
    assert np.abs(counts - 600).max() < 5 * np.sqrt(2000 * 0.3 * 0.7)
    assert dropout.random_patches(keys[:1], 4, 0.99).shape == (1, 1)
    assert dropout.random_patches(keys[:1], 196, 0.5).shape == (1, 98)
