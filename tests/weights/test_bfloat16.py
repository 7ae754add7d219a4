"""bfloat16 with a residual stream of float32 is nearer to float32 than all of it in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip
from jaxclip import models
from jaxclip.models.products import rules
from jaxclip.weights.checkpoint import open_checkpoint
from tests.weights.adamw_step import GOLDEN

WIDE = {"dtype": "bfloat16", "residual_dtype": "float32"}


def encoded(opened, params, images, tokens, **options):
    model = models.build(opened.sizes, **options)

    @jax.jit
    def run(params):
        image, text = model.image_features(params, images), model.text_features(params, tokens)
        return (image.embedding, text.embedding), (image.tokens, text.tokens)

    return run(params)


def inputs(sizes):
    rng = np.random.default_rng(3)
    side, text = sizes.image.image_size, sizes.text
    images = rng.standard_normal((8, side, side, 3)).astype(np.float32)
    tokens = rng.integers(3, text.vocab_size - 1, (8, text.context_length)).astype(np.int32)
    tokens[:, -1] = text.vocab_size - 1
    return images, tokens


@pytest.mark.parametrize("name", ["open_clip_convnext", "open_clip_roberta"])
def test_a_residual_stream_of_float32_is_nearer_to_float32(name):
    opened = open_checkpoint(GOLDEN / name)
    params = opened.read()
    given = inputs(opened.sizes)
    exact, _ = encoded(opened, params, *given)
    half, half_tokens = encoded(opened, params, *given, dtype="bfloat16")
    wide, wide_tokens = encoded(opened, params, *given, **WIDE)
    assert {x.dtype for x in half_tokens} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in wide_tokens} == {jnp.dtype("float32")}
    for x, narrow, near in zip(exact, half, wide, strict=True):
        x = np.asarray(x, np.float64)
        errors = [float(np.linalg.norm(np.asarray(y) - x)) for y in (narrow, near)]
        assert 0 < errors[1] < 0.9 * errors[0], errors


def test_loops_and_recomputation_keep_the_dtype_and_float32_keeps_its_bits():
    opened = open_checkpoint(GOLDEN / "hf_clip")
    params, given = opened.read(), inputs(opened.sizes)
    plain, _ = encoded(opened, params, *given)
    same, _ = encoded(opened, params, *given, residual_dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    wide, _ = encoded(opened, params, *given, **WIDE)
    looped, _ = encoded(opened, params, *given, **WIDE, scan_layers=True, remat="mlp")
    for x, y in zip(wide, looped, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)


def test_a_model_that_is_loaded_in_bfloat16_has_it():
    model = jaxclip.load(GOLDEN / "hf_clip", dtype="bfloat16")
    towers = model.towers.model
    assert towers.image.dtype == jnp.bfloat16 and towers.text.outer_dtype == jnp.float32
    assert jaxclip.load(GOLDEN / "hf_clip").towers.model.image.residual_dtype is None
    split = jaxclip.load(GOLDEN / "hf_clip", dtype="bfloat16x2").towers
    assert split.products == rules.from_config({"name": "split_bfloat16", "terms": 2})
    assert split.model.image.dtype == jnp.float32 and split.dtype == "float32"
