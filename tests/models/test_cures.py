"""QK-norm, soft cap, LayerScale and muP in the towers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import attention_logits, layers, mup, presets

IMAGE = presets.ImageConfig(
    image_size=16, patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32, pool="mean"
)
TEXT = presets.TextConfig(
    vocab_size=50, context_length=6, width=16, depth=2, num_heads=2, mlp_dim=32
)


def build(image=(), text=(), **options):
    config = presets.CLIPConfig(
        dataclasses.replace(IMAGE, **dict(image)), dataclasses.replace(TEXT, **dict(text)), 8
    )
    return models.build(config, **options)


def inputs(count=3):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 16, 16, 3)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(1, 50, (count, 6)), jnp.int32)


@pytest.fixture(scope="module")
def plain():
    model = build()
    return model, model.init(jax.random.key(0))


# QK-norm.


def both(**options):
    return {"image": options, "text": options}


def test_qk_norm_makes_logits_blind_to_the_scale_of_queries(plain):
    model = build(**both(qk_norm=True))
    params = model.init(jax.random.key(0))
    attention = params["image"]["blocks_0"]["attention"]
    assert attention["query_norm"]["scale"].shape == (8,) and "bias" not in attention["query_norm"]
    images, _ = inputs()
    before = model.encode_image(params, images)
    query = jax.tree.map(lambda leaf: 50 * leaf, attention["query"])
    block = {**params["image"]["blocks_0"], "attention": {**attention, "query": query}}
    scaled = {**params, "image": {**params["image"], "blocks_0": block}}
    np.testing.assert_allclose(model.encode_image(scaled, images), before, atol=2e-4)
    logits = attention_logits.largest_attention_logits(model.image, scaled["image"], images)
    assert np.all(np.abs(logits) <= np.sqrt(8) + 1e-5)
    assert not np.allclose(plain[0].encode_image(params, images), before, atol=1e-2)


def test_parts_of_a_block_make_the_block_with_all_of_it():
    model = build(**both(qk_norm=True, mup_base_width=8, mup_base_heads=2))
    params = model.init(jax.random.key(0))["image"]
    features = model.image.features(params, inputs()[0], hidden=[0], attention=[0])
    query, key, _ = model.image.qkv(params, features.hidden[0], 0)
    np.testing.assert_allclose(
        layers.softmax_weights(query, key), features.attention[0], rtol=1e-5, atol=1e-6
    )


# Soft cap.


def test_the_cap_is_that_of_the_formula():
    def capped(score, cap):
        # One head of one channel: q·k is the score; the other key has score 0.
        query, key = jnp.full((1, 1, 1, 1), score), jnp.asarray([1.0, 0.0]).reshape(1, 1, 2, 1)
        weights = layers.softmax_weights(query, key, None, cap)[0, 0, 0]
        return float(jnp.log(weights[0]) - jnp.log(weights[1]))

    assert capped(20.0, 10.0) == pytest.approx(9.640276, rel=1e-5)
    assert capped(0.01, 50.0) == pytest.approx(0.01, rel=1e-5)
    assert 50 * np.tanh(2) == pytest.approx(48.2014, abs=1e-4)
    assert capped(30.0, 0.0) == pytest.approx(30.0, rel=1e-5)


def test_a_huge_cap_is_no_cap_and_a_small_one_is_one(plain):
    model, params = plain
    images, tokens = inputs()
    far = build(**both(attention_soft_cap=1e4))
    near = build(**both(attention_soft_cap=0.5))
    for name, array in (("encode_image", images), ("encode_text", tokens)):
        expected = getattr(model, name)(params, array)
        np.testing.assert_allclose(getattr(far, name)(params, array), expected, atol=1e-5)
        assert np.abs(getattr(near, name)(params, array) - expected).max() > 1e-4


def test_capped_texts_still_do_not_see_the_future():
    model = build(**both(attention_soft_cap=2.0))
    params = model.init(jax.random.key(0))["text"]
    tokens = inputs()[1]
    changed = tokens.at[:, 4].set(7)
    one, other = (model.text.features(params, t).tokens for t in (tokens, changed))
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert not np.array_equal(one[:, 4], other[:, 4])


@pytest.mark.parametrize("implementation", ["fused", "cudnn"])
def test_kernels_that_hold_no_scores_refuse_the_cap(implementation):
    with pytest.raises(ValueError, match=r"image.attention_soft_cap needs its own .*set it to None"):
        build(**both(attention_soft_cap=50.0), attention_implementation=implementation)


# LayerScale.


def test_with_gains_of_zero_blocks_are_the_identity():
    model = build(**both(layer_scale=0.0))
    params = model.init(jax.random.key(0))
    images, _ = inputs()
    features = model.image.features(params["image"], images, hidden=[0, 2])
    np.testing.assert_array_equal(features.hidden[0], features.hidden[2])

    def loss(params):
        return jnp.sum(model.image.features(params, images).raw ** 2)

    grads = jax.grad(loss)(params["image"])["blocks_0"]
    for name in ("attention", "mlp"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads[name]))
        assert np.any(grads[f"{name}_layer_scale"])


def test_gains_multiply_what_a_branch_adds(plain):
    _, params = plain
    model = build(**both(layer_scale=0.25))
    images, _ = inputs()
    half = jax.tree.map(lambda leaf: leaf, params["image"])
    gained = dict(half)
    for i in range(2):
        gains = {f"{n}_layer_scale": jnp.full(16, 0.25) for n in ("attention", "mlp")}
        gained[f"blocks_{i}"] = {**half[f"blocks_{i}"], **gains}
        block = half[f"blocks_{i}"]
        out = jax.tree.map(lambda x: 0.25 * x, block["attention"]["out"])
        down = jax.tree.map(lambda x: 0.25 * x, block["mlp"]["down"])
        half[f"blocks_{i}"] = {
            **block, "attention": {**block["attention"], "out": out},
            "mlp": {**block["mlp"], "down": down},
        }  # fmt: skip
    expected = plain[0].image.features(half, images).raw
    np.testing.assert_allclose(model.image.features(gained, images).raw, expected, atol=1e-5)


# The largest logits of the forward pass.


@pytest.mark.parametrize(
    "options",
    [{}, {"scan_layers": True, "remat": "full"}, {"attention_implementation": "fused"}],
    ids=str,
)
def test_largest_logits_are_those_of_the_pass_itself(options):
    model = build(**options)
    params = model.init(jax.random.key(0))
    for tower, array in zip(("image", "text"), inputs(), strict=True):
        part = getattr(model, tower)
        features = part.features(params[tower], array, largest_logits=True)
        found = features.aux["largest_logits"]
        expected = attention_logits.largest_attention_logits(part, params[tower], array)
        assert found.shape == (3, 2, 2)
        np.testing.assert_allclose(jnp.max(found, axis=0), expected, rtol=1e-5)
        # Asking changes nothing, and has no gradient.
        np.testing.assert_allclose(
            features.raw, part.features(params[tower], array).raw, rtol=1e-6, atol=1e-6
        )
        grads = jax.grad(
            lambda p, part=part, array=array: jnp.sum(
                part.features(p, array, largest_logits=True).aux["largest_logits"]
            )
        )(params[tower])
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


# muP.


def test_at_the_base_mup_is_the_usual_parametrisation(plain):
    model = build(**both(mup_base_width=16, mup_base_heads=2))
    params = model.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, plain[1])
    images, tokens = inputs()
    np.testing.assert_array_equal(
        model.encode_image(params, images), plain[0].encode_image(params, images)
    )
    np.testing.assert_array_equal(
        model.encode_text(params, tokens), plain[0].encode_text(params, tokens)
    )
    assert mup.rate_factors(model.config) == []


def test_factors_and_scales_of_a_wider_tower():
    wide = both(width=64, num_heads=2, mlp_dim=128, mup_base_width=16, mup_base_heads=2)
    model = build(**wide)
    factors = mup.rate_factors(model.config)
    for path, factor in {
        "image/blocks_0/attention/query/kernel": 0.25,
        "image/blocks_1/mlp/down/kernel": 0.25,
        "image/projection/kernel": 0.25,
        "text/blocks_0/attention/out/kernel": 0.25,
        "image/patch_embedding/kernel": 1.0,
        "image/blocks_0/attention/query/bias": 1.0,
        "image/blocks_0/mlp_norm/scale": 1.0,
        "image/positions": 1.0,
        "text/token_embedding/embedding": 1.0,
        "logit_scale": 1.0,
    }.items():
        assert mup.factor_of(path, factors) == factor, path
    assert model.image.scores.scale == pytest.approx(0.5)  # sqrt(8 / 32)
    params = model.init(jax.random.key(0))
    limit = np.sqrt(6 / (192 + 16))
    assert 0.97 * limit < np.abs(params["image"]["patch_embedding"]["kernel"]).max() <= limit
    assert np.std(params["image"]["positions"]) == pytest.approx(0.25, rel=0.2)


def test_pictures_of_other_options_that_can_not_be():
    for options, message in (
        ({"attention_soft_cap": -1.0}, r"attention_soft_cap=-1.0; use 50, say, or 0"),
        ({"layer_scale": -0.1}, r"layer_scale=-0.1; use 1e-4, say, or None"),
        ({"mup_base_heads": 2}, r"mup_base_heads=2, mup_base_width=0: use a width"),
        ({"mup_base_width": 16, "mup_base_heads": 3}, r"a number of heads that divides it"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TEXT, **options)
