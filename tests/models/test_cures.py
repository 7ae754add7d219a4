"""QK-norm, soft cap, LayerScale and muP in the towers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import attend, attention_logits, mup, presets

IMAGE = presets.ImageConfig(
    image_size=16, patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32, pool="mean"
)
TEXT = presets.TextConfig(
    vocab_size=50, context_length=6, width=16, depth=1, num_heads=2, mlp_dim=32
)


def image_of(model):
    """Jitted: one program costs less than its operations one by one."""
    return jax.jit(model.encode_image)


def init(model):
    return jax.jit(model.init)(jax.random.key(0))


def text_of(model):
    return jax.jit(model.encode_text)


def build(image=(), text=(), **options):
    config = presets.CLIPConfig(
        dataclasses.replace(IMAGE, **dict(image)), dataclasses.replace(TEXT, **dict(text)), 8
    )
    return models.build(config, **options)


def inputs(count=3):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 16, 16, 3)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(1, 50, (count, 6)), jnp.int32)


@pytest.fixture(autouse=True, scope="module")
def quick(compilation_cache):
    """Most of the time is compilation: the compiler is told not to optimise."""
    option = "jax_disable_most_optimizations"
    before = jax.config.values[option]
    jax.config.update(option, True)
    try:
        with compilation_cache():
            yield
    finally:
        jax.config.update(option, before)


@pytest.fixture(scope="module")
def plain():
    model = build()
    return model, init(model)


@functools.partial(jax.jit, static_argnums=0)
def largest(tower, params, array):
    return attention_logits.largest_attention_logits(tower, params, array)


# QK-norm.


def both(**options):
    return {"image": options, "text": options}


def test_qk_norm_makes_logits_blind_to_the_scale_of_queries(plain):
    model = build(**both(qk_norm=True))
    params = init(model)
    attention = params["image"]["blocks_0"]["attention"]
    assert attention["query_norm"]["scale"].shape == (8,) and "bias" not in attention["query_norm"]
    images, _ = inputs()
    before = image_of(model)(params, images)
    query = jax.tree.map(lambda leaf: 50 * leaf, attention["query"])
    block = {**params["image"]["blocks_0"], "attention": {**attention, "query": query}}
    scaled = {**params, "image": {**params["image"], "blocks_0": block}}
    np.testing.assert_allclose(image_of(model)(scaled, images), before, atol=2e-4)
    logits = largest(model.image, scaled["image"], images)
    assert np.all(np.abs(logits) <= np.sqrt(8) + 1e-5)
    assert not np.allclose(image_of(plain[0])(params, images), before, atol=1e-2)


def test_parts_of_a_block_make_the_block_with_all_of_it():
    model = build(**both(qk_norm=True, mup_base_width=8, mup_base_heads=2))
    params = init(model)["image"]

    @jax.jit
    def two_ways(params, images):
        features = model.image.features(params, images, hidden=[0], attention=[0])
        query, key, _ = model.image.qkv(params, features.hidden[0], 0)
        return attend.softmax_weights(query, key), features.attention[0]

    np.testing.assert_allclose(*two_ways(params, inputs()[0]), rtol=1e-5, atol=1e-6)


# Soft cap.


def test_the_cap_is_that_of_the_formula():
    def capped(score, cap):
        # One head of one channel: q·k is the score; the other key has score 0.
        query, key = jnp.full((1, 1, 1, 1), score), jnp.asarray([1.0, 0.0]).reshape(1, 1, 2, 1)
        weights = attend.softmax_weights(query, key, None, cap)[0, 0, 0]
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
    for run, array in ((image_of, images), (text_of, tokens)):
        expected = run(model)(params, array)
        np.testing.assert_allclose(run(far)(params, array), expected, atol=1e-5)
        assert np.abs(run(near)(params, array) - expected).max() > 1e-4


def test_capped_texts_still_do_not_see_the_future():
    model = build(**both(attention_soft_cap=2.0))
    params = init(model)["text"]
    tokens = inputs()[1]
    changed = tokens.at[:, 4].set(7)
    run = jax.jit(lambda tokens: model.text.features(params, tokens).tokens)
    one, other = run(tokens), run(changed)
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert not np.array_equal(one[:, 4], other[:, 4])


@pytest.mark.parametrize("implementation", ["fused", "cudnn"])
def test_kernels_that_hold_no_scores_refuse_the_cap(implementation):
    with pytest.raises(
        ValueError, match=r"image.attention_soft_cap needs its own .*set it to None"
    ):
        build(**both(attention_soft_cap=50.0), attention_implementation=implementation)


# LayerScale.


def test_with_gains_of_zero_blocks_are_the_identity():
    model = build(**both(layer_scale=0.0))
    params = init(model)
    images, _ = inputs()

    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        features = model.image.features(params, images, hidden=[0, 1])
        return jnp.sum(features.raw**2), features.hidden

    grads, hidden = jax.jit(gradient)(params["image"])
    np.testing.assert_array_equal(hidden[0], hidden[1])
    grads = grads["blocks_0"]
    for name in ("attention", "mlp"):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads[name]))
        assert np.any(grads[f"{name}_scale"])


def test_gains_multiply_what_a_branch_adds(plain):
    _, params = plain
    model = build(**both(layer_scale=0.25))
    images, _ = inputs()
    half = jax.tree.map(lambda leaf: leaf, params["image"])
    gained = dict(half)
    for i in range(1):
        gains = {f"{n}_scale": jnp.full(16, 0.25) for n in ("attention", "mlp")}
        gained[f"blocks_{i}"] = {**half[f"blocks_{i}"], **gains}
        block = half[f"blocks_{i}"]
        out = jax.tree.map(lambda x: 0.25 * x, block["attention"]["out"])
        down = jax.tree.map(lambda x: 0.25 * x, block["mlp"]["down"])
        half[f"blocks_{i}"] = {
            **block, "attention": {**block["attention"], "out": out},
            "mlp": {**block["mlp"], "down": down},
        }  # fmt: skip
    expected = image_of(plain[0])({"image": half}, images)
    np.testing.assert_allclose(image_of(model)({"image": gained}, images), expected, atol=1e-5)


# The largest logits of the forward pass.


@pytest.mark.parametrize(
    "options",
    [
        {"scan_layers": True, "remat": "full"},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"attention_implementation": "fused"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_largest_logits_are_those_of_the_pass_itself(options):
    deep = {"depth": 2}
    model = build(deep, deep, **options)
    params = init(model)
    for tower, array in zip(("image", "text"), inputs(), strict=True):
        part = getattr(model, tower)

        @functools.partial(jax.grad, has_aux=True)
        def gradient(params, part=part, array=array):
            features = part.features(params, array, largest_logits=True)
            found = features.aux["largest_logits"]
            return jnp.sum(found), (found, features.embedding)

        grads, (found, embedding) = jax.jit(gradient)(params[tower])
        assert found.shape == (3, 2, 2)
        expected = largest(part, params[tower], array)
        np.testing.assert_allclose(jnp.max(found, axis=0), expected, rtol=1e-5)
        # Asking changes nothing, and has no gradient.
        run = image_of if tower == "image" else text_of
        np.testing.assert_allclose(embedding, run(model)(params, array), rtol=1e-5, atol=1e-6)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


# muP.


def test_at_the_base_mup_is_the_usual_parametrisation(plain):
    model = build(**both(mup_base_width=16, mup_base_heads=2))
    params = init(model)
    jax.tree.map(np.testing.assert_array_equal, params, plain[1])
    images, tokens = inputs()
    for run, array in ((image_of, images), (text_of, tokens)):
        np.testing.assert_array_equal(run(model)(params, array), run(plain[0])(params, array))
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
    assert model.image.variant.score_scale == pytest.approx(0.5)  # sqrt(8 / 32)
    params = init(model)
    limit = np.sqrt(6 / (192 + 16))
    assert 0.97 * limit < np.abs(params["image"]["patch_embedding"]["kernel"]).max() <= limit
    assert np.std(params["image"]["positions"]) == pytest.approx(0.25, rel=0.2)


def test_pictures_of_other_options_that_can_not_be():
    for options, message in (
        ({"attention_soft_cap": -1.0}, r"attention_soft_cap=-1.0; use 50, say, or 0"),
        ({"layer_scale": -0.1}, r"layer_scale=-0.1 is negative or .* use 1e-4, say, or None"),
        ({"mup_base_heads": 2}, r"mup_base_heads=2, mup_base_width=0: use a width"),
        ({"mup_base_width": 16, "mup_base_heads": 3}, r"a number of heads that divides it"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TEXT, **options)
