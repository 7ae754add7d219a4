"""The encoders against an independent float64 reference, and what their arguments change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import clip, presets, text
from tests.models import reference, small

VARIANTS = {
    "clip": small.CLIP,
    "siglip": small.SIGLIP,
    "quick_gelu": small.change(
        small.CLIP, image={"activation": "quick_gelu"}, text={"activation": "quick_gelu"}
    ),
    "mean": small.change(
        small.CLIP,
        image={"pool": "mean", "pre_norm": False},
        text={"pool": "mean", "causal": False},
    ),
    "map": small.change(small.CLIP, image={"pool": "map"}, text={"pool": "map", "causal": False}),
    "bidirectional_last": small.change(small.CLIP, text={"causal": False}),
    "mean_over_padding": small.change(small.SIGLIP, text={"pool": "mean"}),
}


def make(config, **options):
    """Parameters and both encoders, jitted."""
    model = models.build(config, **options)
    params = small.params_for(model)
    return params, jax.jit(model.encode_image), jax.jit(model.encode_text)


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoders_equal_the_reference(variant):
    config = VARIANTS[variant]
    params, encode_image, encode_text = make(config)
    images, tokens = small.batch(config)
    tokens[-1, 2] = 0  # a 0 within a text is a token like any other
    np.testing.assert_allclose(
        encode_image(params, images), reference.encode_image(params, config, images), atol=2e-6
    )
    np.testing.assert_allclose(
        encode_text(params, tokens), reference.encode_text(params, config, tokens), atol=2e-6
    )


@pytest.mark.parametrize("variant", ["clip", "mean", "map", "bidirectional_last"])
def test_padding_changes_nothing(variant):
    config = VARIANTS[variant]
    params, _, encode_text = make(config)
    _, tokens = small.batch(config, size=3)
    tokens[:, 4:] = 0
    np.testing.assert_allclose(
        encode_text(params, tokens), encode_text(params, tokens[:, :4]), atol=1e-6
    )


def test_a_causal_text_is_read_at_its_end():
    """What stands behind the end of a text changes nothing, what stands at it does."""
    params, _, encode_text = make(small.CLIP)
    tokens = np.arange(1, 7, dtype=np.int32)
    prefixes = np.where(np.arange(6) < np.arange(1, 7)[:, None], tokens, 0)
    expected = reference.encode_text(params, small.CLIP, prefixes)
    np.testing.assert_allclose(encode_text(params, prefixes), expected, atol=2e-6)
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 1e-2
    np.testing.assert_array_equal(text.last_token(jnp.asarray(prefixes)), np.arange(6))


def test_padding_that_ends_a_text():
    """SigLIP's padding is its end-of-text, 1: the first of them belongs to the text."""
    rows = jnp.array([[5, 6, 1, 1], [1, 1, 1, 1], [5, 1, 6, 1], [5, 6, 7, 1], [5, 0, 1, 1]])
    np.testing.assert_array_equal(text.last_token(rows, 1), [2, 0, 3, 3, 2])
    sizes = presets.TextConfig(
        vocab_size=8, context_length=4, width=8, depth=1, num_heads=2, mlp_dim=8, causal=False,
        pool="mean", pad_id=1,
    )  # fmt: skip
    tower = text.TextTransformer(sizes, 8)
    tokens = tower.embed(tower.init_embed(jax.random.key(0)), rows)
    np.testing.assert_array_equal(tokens.valid.sum(axis=1), [3, 1, 4, 4, 3])
    with pytest.raises(ValueError, match=r"model.text.pad_id=8 must be a token, 0 to .* = 7"):
        dataclasses.replace(sizes, pad_id=8)


@pytest.mark.parametrize("pool", ["last", "mean", "map"])
def test_an_empty_text_is_finite_with_finite_gradients(pool):
    config = small.change(small.CLIP, text={"pool": pool, "causal": pool == "last", "depth": 1})
    params, _, encode_text = make(config)
    tokens = jnp.zeros((1, 6), jnp.int32)
    grads = jax.jit(jax.grad(lambda p: encode_text(p, tokens)[0, 0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.any(grads["text"]["projection"]["kernel"])


def test_wrong_shapes_are_named():
    params, encode_image, encode_text = make(small.CLIP)
    with pytest.raises(ValueError, match=r"\(1, 9, 8, 3\); the image tower takes \[B, 8, 8, 3\]"):
        encode_image(params, np.zeros((1, 9, 8, 3)))
    with pytest.raises(ValueError, match=r"\(1, 7\): longer than model\.text\.context_length=6"):
        encode_text(params, np.ones((1, 7), np.int32))


def test_what_is_not_normalised_and_what_are_no_tokens():
    model = models.build(presets.get("tiny"))
    size = model.config.image.image_size
    params = jax.eval_shape(model.init, jax.random.key(0))

    def traced(function, array):
        return jax.eval_shape(function, params, jax.ShapeDtypeStruct(*array))

    for encode in (model.encode_image, model.image_features):
        with pytest.raises(ValueError, match=r"images of dtype uint8; .* normalised floats"):
            traced(encode, ((1, size, size, 3), jnp.uint8))
    for encode in (model.encode_text, model.text_features):
        for array in (((4,), jnp.int32), ((1, 4), jnp.float32), ((1, 1, 4), jnp.int32)):
            with pytest.raises(ValueError, match=r"the text tower takes int32\[B, L\]"):
                traced(encode, array)


def test_unknown_switches_are_refused():
    with pytest.raises(ValueError, match=r"remat='half'; use 'none', 'full', 'dots'"):
        models.build(small.CLIP, remat="half")
    with pytest.raises(ValueError, match=r"attention_implementation='flash'"):
        models.build(small.CLIP, attention_implementation="flash")


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_bfloat16_is_close_and_parameters_and_outputs_are_float32(variant):
    config = VARIANTS[variant]
    params, encode_image, encode_text = make(config, dtype="bfloat16")
    images, tokens = small.batch(config)
    drawn = jax.eval_shape(models.build(config, dtype="bfloat16").init, jax.random.key(0))
    grads = jax.eval_shape(jax.grad(lambda p: encode_text(p, tokens).sum()), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((drawn, grads))} == {jnp.dtype("float32")}
    for rounded, exact in (
        (encode_image(params, images), reference.encode_image(params, config, images)),
        (encode_text(params, tokens), reference.encode_text(params, config, tokens)),
    ):
        assert rounded.dtype == jnp.float32
        assert np.sum(exact * rounded, axis=1).min() > 0.999
        assert np.abs(exact - rounded).max() > 1e-4  # it was bfloat16
        np.testing.assert_allclose(np.linalg.norm(rounded, axis=1), 1, rtol=1e-6)


def test_attention_implementation_xla_gives_the_same_numbers():
    params, encode_image, encode_text = make(small.CLIP, attention_implementation="xla")
    images, tokens = small.batch(small.CLIP)
    np.testing.assert_allclose(
        encode_image(params, images), reference.encode_image(params, small.CLIP, images), atol=2e-6
    )
    np.testing.assert_allclose(
        encode_text(params, tokens), reference.encode_text(params, small.CLIP, tokens), atol=2e-6
    )


def test_initial_temperature():
    init = models.build(small.SIGLIP).init

    @jax.jit  # the rest of the parameters is not computed
    def scale_and_bias(rng):
        params = init(rng)
        return params["logit_scale"], params["logit_bias"]

    scale, bias = scale_and_bias(jax.random.key(0))
    assert float(jnp.exp(scale)) == pytest.approx(1 / 0.07) and float(bias) == -10.0
    assert "logit_bias" not in jax.eval_shape(models.build(small.CLIP).init, jax.random.key(0))


def test_unit_rows():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-8, 0.0], [1e15, 0.0]], jnp.bfloat16)
    np.testing.assert_allclose(clip.unit(x), [[0.6, 0.8], [0, 0], [1, 0], [1, 0]], rtol=4e-3)
    assert clip.unit(x).dtype == jnp.float32
    grads = jax.grad(lambda x: clip.unit(x).sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(grads, jnp.full((1, 2), 1e12))
