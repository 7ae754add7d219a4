"""What towers give: outputs and stages against the plain encoders, nothing paid for the unasked."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxclip import models, parallel
from jaxclip.models import layers, positions, presets
from tests.models import old_towers, small

CONFIGS = {
    "clip": small.CLIP,
    "siglip": small.SIGLIP,
    "mean_conv": small.change(
        small.CLIP,
        image={
            "pool": "mean",
            "pre_norm": False,
            "stem": "conv",
            "stem_widths": (6, 10),
            "positions": "sincos",
        },
        text={"pool": "mean", "causal": False},
    ),
    "map_registers": small.change(
        small.CLIP,
        image={"pool": "map", "num_registers": 2},
        text={"pool": "map", "causal": False},
    ),
}
PREFIX = {"clip": 1, "siglip": 0, "mean_conv": 0, "map_registers": 2}


def close(got, expected, atol=3e-6):
    np.testing.assert_allclose(got, expected, atol=atol)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_embeddings_are_those_of_before_to_the_bit_and_so_are_draws(name):
    config = CONFIGS[name]
    model = models.build(config)
    params = small.params_for(model)
    images, tokens = small.batch(config)
    drawn = model.init(jax.random.key(5))
    rngs = jax.random.split(jax.random.key(5))
    for tower, encode, inputs, rng in (
        ("image", model.encode_image, images, rngs[0]),
        ("text", model.encode_text, tokens, rngs[1]),
    ):
        old = old_towers.Tower(getattr(config, tower), config.embed_dim)
        got = jax.jit(encode)(params, inputs)
        np.testing.assert_array_equal(got, jax.jit(old.apply)({"params": params[tower]}, inputs))
        expected = old.init(rng, inputs[:1])["params"]
        assert jax.tree.structure(drawn[tower]) == jax.tree.structure(expected)
        jax.tree.map(lambda a, b: close(a, b, 1e-7), drawn[tower], expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_what_they_are_called(name):
    config = CONFIGS[name]
    model = models.build(config)
    params = small.params_for(model)
    images, tokens = small.batch(config)
    prefix = PREFIX[name]

    @jax.jit
    def run(params):
        asked = {"hidden": (0, 1, -1), "attention": (0, -1)}
        image = model.image_features(params, images, **asked)
        text = model.text_features(params, tokens, **asked)
        again = model.project_image(params, image.pooled), model.project_text(params, text.pooled)
        plain = model.encode_image(params, images), model.encode_text(params, tokens)
        return image, text, again, plain

    image, text, again, plain = run(params)
    for features, raw, embedding, tower, length, p in (
        (image, again[0], plain[0], config.image, 4, prefix),
        (text, again[1], plain[1], config.text, 6, 0),
    ):
        close(features.embedding, embedding)
        close(features.raw, raw)
        close(features.raw / np.linalg.norm(features.raw, axis=1, keepdims=True), embedding)
        assert features.raw.dtype == jnp.float32 and features.aux == {}
        assert features.tokens.shape == (4, length, tower.width)
        assert features.prefix.shape == (4, p, tower.width)
        assert set(features.hidden) == {0, 1, -1} and set(features.attention) == {0, -1}
        for x in features.hidden.values():
            assert x.shape == (4, p + length, tower.width)
        for weights in features.attention.values():
            assert weights.shape == (4, tower.num_heads, p + length, p + length)
            close(weights.sum(-1), np.ones(weights.shape[:3]))
        # The last hidden layer, normed, is the tokens.
        scale, bias = (
            params["image" if p or features is image else "text"]["norm_post"][k]
            for k in ("scale", "bias")
        )
        x = np.asarray(features.hidden[-1], np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + tower.norm_eps)
        close(np.concatenate([features.prefix, features.tokens], 1), x * scale + bias, 2e-5)
    assert image.valid is None
    lengths = [2, 3, 4, 6]
    np.testing.assert_array_equal(text.valid, np.arange(6) < np.array(lengths)[:, None])
    if config.text.causal:
        assert not np.triu(text.attention[0][0, 0], 1).any()
    elif config.text.mask_padding:
        assert not text.attention[0][0, :, :, 2:].any()
    if config.image.pool == "mean":
        close(image.pooled, image.tokens.mean(1))
    if config.image.pool == "cls":
        close(image.pooled, image.prefix[:, 0])


def test_stages_compose_to_the_whole(clip):
    model, params, images, _ = clip
    tower, p = model.image, params["image"]

    @jax.jit
    def run(params):
        start = tower.embed(params, images)
        half, _ = tower.blocks(params, start, 0, 1)
        end, taps = tower.blocks(
            params, half, 1, requests=tower.requests(hidden=(1, 2), attention=(1,))
        )
        query, key, value = tower.qkv(params, half.x, -1)
        weights = models.softmax_weights(query, key)
        by_hand = half.x + tower.attention_out(params, weights, value, -1)
        return start, half, end, taps, tower.head(params, end), weights, by_hand

    start, half, end, taps, features, weights, by_hand = run(p)
    whole = jax.jit(
        lambda p: model.image_features(
            p, images, hidden=(0, 1, 2), attention=(1,), attend={1: models.Attend(mlp=False)}
        )
    )(params)
    close(features.embedding, model.encode_image(params, images))
    close(start.x, whole.hidden[0])
    close(half.x, whole.hidden[1])
    close(taps.hidden[1], half.x)
    close(taps.hidden[2], end.x)
    close(taps.attention[1], weights)
    close(whole.attention[1], weights)
    close(whole.hidden[2], by_hand, 1e-5)  # the last block without its MLP


def test_scanned_layers_take_every_request(clip):
    images = clip[2]
    config = small.change(small.CLIP, image={"depth": 4, "dropout": 0.2})
    params = small.params_for(models.build(config))
    bias = jnp.zeros((1, 1, 5, 5)).at[..., 2].set(-1.0)
    asked = {
        "hidden": (0, 2),
        "attention": (2,),
        "insert": {0: jnp.ones((2, 16)), 3: 0.5 * jnp.ones((4, 1, 16))},
        "attend": {3: lambda q, k, v, b: models.softmax_weights(k, k, b)},
        "attention_bias": bias,
        "train": True,
        "keys": jax.random.split(jax.random.key(0), 4),
    }
    plain, scanned = (
        jax.jit(lambda p, m=m: m.image_features(p, images, **asked))(params)
        for m in (models.build(config), models.build(config, scan_layers=True, remat="dots"))
    )
    jax.tree.map(lambda a, b: close(a, b, 1e-5), plain, scanned)
    assert plain.attention[2].shape == (4, 2, 7, 7) and plain.hidden[2].shape == (4, 5, 16)
    assert plain.aux["inserted"].shape == (4, 1, 16)


def test_what_nobody_asks_for_costs_nothing(clip):
    model, params, images, tokens = clip
    for encode, features, inputs in (
        (model.encode_image, model.image_features, images),
        (model.encode_text, model.text_features, tokens),
    ):
        flops = [
            jax.jit(f).lower(params, inputs).compile().cost_analysis()["flops"]
            for f in (
                encode,
                lambda p, x, f=features: f(p, x).embedding,
                lambda p, x, f=features: f(p, x, activation_sums=True).embedding,
            )
        ]
        assert flops[0] == flops[1] == flops[2] > 0


def sums_by_hand(part, params, inputs):
    """float64[B, blocks, 2] of the hidden units that the MLPs' own parameters make."""
    act = layers.activation(part.config.activation)
    every = []
    tokens = part.embed(params, inputs)
    for block in range(part.config.depth):
        # Behind attention alone; then the MLP is done here.
        asked = part.requests(attend={block: models.Attend(mlp=False)})
        middle, _ = part.blocks(params, tokens, block, block + 1, requests=asked)
        p = params[f"blocks_{block}"]
        normed = layers.norm(part.config.norm_eps, part.dtype, None, part.variant.norm).apply(
            {"params": p["mlp_norm"]}, middle.x
        )
        hidden = normed @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
        if "gate" in p["mlp"]:
            gate = normed @ p["mlp"]["gate"]["kernel"] + p["mlp"]["gate"]["bias"]
            hidden = act(gate) * hidden
        else:
            hidden = act(hidden)
        x = np.clip(np.asarray(hidden, np.float64), 0, 1)
        every.append(np.stack([x.sum((1, 2)), (x**2).sum((1, 2))], 1))
        tokens, _ = part.blocks(params, tokens, block, block + 1)
    return np.stack(every, 1)


@pytest.mark.parametrize("mlp", ["gated", pytest.param("plain", marks=pytest.mark.slow)])
def test_sums_of_activations_are_those_of_the_pass_itself(mlp):
    image = {"depth": 3, "mlp": mlp, "activation": "silu"}
    config = small.change(small.CLIP, image=image)
    plain, scanned = models.build(config), models.build(config, scan_layers=True, remat="full")
    params = small.params_for(plain)
    images, tokens = small.batch(config)
    runs = [("image", images), ("text", tokens)] if mlp == "plain" else [("image", images)]
    for tower, inputs in runs:

        @functools.partial(jax.value_and_grad, has_aux=True)
        def total(params, part, inputs=inputs):
            features = part.features(params, inputs, activation_sums=True, hidden=(1,))
            sums = features.aux["activation_sums"]
            return jnp.sum(sums[..., 0] ** 2 / sums[..., 1]), (sums, features.embedding)

        whole, looped = (
            jax.jit(total, static_argnums=1)(params[tower], getattr(model, tower))
            for model in (plain, scanned)
        )
        sums, embedding = whole[0][1]
        assert sums.shape == (4, getattr(config, tower).depth, 2) and sums.dtype == jnp.float32
        expected = sums_by_hand(getattr(plain, tower), params[tower], inputs)
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-3), whole, looped)
        encode = getattr(plain, f"encode_{tower}")
        close(embedding, jax.jit(encode)(params, inputs))
        assert np.any(whole[1]["blocks_0"]["mlp"]["up"]["kernel"])


def test_experts_and_convolutions_have_no_sums_of_activations():
    config = small.change(small.CLIP, image={"depth": 3, "num_experts": 2, "expert_blocks": 1})
    resnet = presets.get("rn50")
    for image, blocks in ((config.image, 2), (resnet.image, 0)):
        model = models.build(dataclasses.replace(config, image=image), scan_layers=True)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        side = image.image_size
        pixels = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
        features = jax.eval_shape(
            functools.partial(model.image_features, activation_sums=True), shapes, pixels
        )
        assert features.aux["activation_sums"].shape == (4, blocks, 2)
    every = small.change(config, image={"expert_blocks": 0})
    model = models.build(every)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    pixels = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    asked = functools.partial(model.image_features, activation_sums=True)
    assert jax.eval_shape(asked, shapes, pixels).aux["activation_sums"].shape == (4, 0, 2)


def test_keep_runs_these_patches_with_their_own_positions(clip):
    model, params, images, _ = clip
    keep = jnp.array([[3, 0], [1, 2], [2, 2], [0, 3]], jnp.int32)
    run = jax.jit(lambda p, keep: model.image_features(p, images, keep=keep, hidden=(0,)))
    features = run(params, keep)
    whole = model.image.embed(params["image"], images).x
    chosen = np.concatenate(
        [whole[:, :1], np.take_along_axis(np.asarray(whole), 1 + keep[:, :, None], 1)], axis=1
    )
    close(features.hidden[0], chosen)
    end, _ = model.image.blocks(params["image"], models.Tokens(jnp.asarray(chosen)))
    close(features.embedding, model.image.head(params["image"], end).embedding)
    close(run(params, keep[:, ::-1]).embedding, features.embedding)
    everything = jnp.broadcast_to(jnp.arange(4), (4, 4))
    close(run(params, everything).embedding, model.encode_image(params, images))


def test_a_token_pooled_alone_is_the_embedding_of_it_alone():
    model = models.build(small.SIGLIP)
    params = small.params_for(model)
    images, _ = small.batch(small.SIGLIP)
    keep = jnp.array([[0], [3], [1], [2]])

    @jax.jit
    def run(params):
        features = model.image_features(params, images, keep=keep)
        alone = model.image.pool_tokens(params["image"], features.tokens)
        return features.raw, model.project_image(params, alone)

    raw, alone = run(params)
    close(alone[:, 0], raw)


def test_keep_of_a_text_pools_where_the_text_ends(clip):
    model, params, _, tokens = clip
    tokens = tokens[2:]  # lengths 4 and 6
    keep = jnp.array([[0, 1, 3, 4], [0, 2, 3, 5]])
    features = model.text_features(params, tokens, keep=keep)
    np.testing.assert_array_equal(features.valid, [[1, 1, 1, 0], [1, 1, 1, 1]])
    close(features.pooled, np.stack([features.tokens[0, 2], features.tokens[1, 3]]))
    everything = jnp.broadcast_to(jnp.arange(6), (2, 6))
    close(
        model.text_features(params, tokens, keep=everything).embedding,
        model.encode_text(params, tokens),
    )


def test_keep_moves_nothing_between_devices(clip):
    model, params, _, _ = clip
    mesh = parallel.make_mesh({"data": 8}, devices=jax.devices()[:8])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=rows)
    keep = jax.ShapeDtypeStruct((16, 2), jnp.int32, sharding=rows)
    run = jax.jit(lambda x, keep: model.image.embed(params["image"], x, keep=keep).x)
    text = run.lower(images, keep).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text and "all-to-all" not in text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hidden": (3,)}, r"hidden: there is no 3; use -3 to 2"),
        ({"attention": (2,)}, r"attention: there is no 2; use -2 to 1"),
        ({"attend": {5: None}}, r"attend: there is no 5"),
        ({"insert": np.zeros(16)}, r"insert at layer 0 has shape \(16,\); use \[M, C\]"),
        ({"insert": np.zeros((2, 15))}, r"insert of shape \(2, 15\); use \[M, 16\]"),
        ({"attention_bias": np.zeros((5, 5))}, r"attention_bias of shape \(5, 5\)"),
        ({"attend": {1: lambda q, k, v, b: q}}, r"weights of shape \(4, 2, 5, 8\)"),
        ({"low_rank": {"blocks_0/mlp/upp/kernel": ()}}, "did you mean 'blocks_0/mlp/up/kernel'"),
        (
            {"low_rank": {"projection/kernel": (np.zeros((3, 2)), np.zeros((2, 8)))}},
            r"use \[16, r\] and \[r, 8\]",
        ),
    ],
)
def test_requests_that_do_not_fit_are_named(clip, asked, message):
    model, params, images, _ = clip
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: model.image_features(p, images, **asked), params)


def test_blocks_that_are_not_there_are_named(clip):
    model, params, images, _ = clip
    tokens = model.image.embed(params["image"], images)
    with pytest.raises(ValueError, match=r"no blocks\[1:3\] in a tower of depth 2"):
        model.image.blocks(params["image"], tokens, 1, 3)


def test_low_rank_is_a_sum_of_kernels(clip):
    model, params, images, _ = clip
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((16, 2), (2, 16)))
    path = "blocks_1/attention/value/kernel"
    merged = jax.tree.map(jnp.asarray, params)
    merged["image"]["blocks_1"]["attention"]["value"]["kernel"] += a @ b
    run = jax.jit(lambda p, lora: model.image_features(p, images, low_rank=lora).embedding)
    got = run(params, {path: (a, b)})
    close(got, model.encode_image(merged, images))
    assert np.abs(got - model.encode_image(params, images)).max() > 1e-2


def test_another_image_size_has_positions_between():
    model = models.build(small.SIGLIP)  # without a norm behind the positions
    params = small.params_for(model)
    images = np.random.default_rng(0).standard_normal((2, 12, 8, 3)).astype(np.float32)
    run = jax.jit(lambda p: model.image_features(p, images, hidden=(0,)))
    features = run(params)
    assert features.tokens.shape == (2, 6, 16)
    table = params["image"]["positions"]
    without = run({**params, "image": {**params["image"], "positions": jnp.zeros_like(table)}})
    resized = positions.resize_positions(jnp.asarray(table), (2, 2), (3, 2))
    close(features.hidden[0] - without.hidden[0], np.broadcast_to(resized, (2, 6, 16)))
    with pytest.raises(ValueError, match=r"\(2, 9, 8, 3\); the image tower .*patch_size=4"):
        model.image_features(params, np.zeros((2, 9, 8, 3)))


def keys_weights(size, new):
    """Bicubic weights [new, size], Keys' kernel of a = -0.5, wider where an image shrinks."""
    scale = max(size / new, 1.0)
    centres = (np.arange(new) + 0.5) * size / new - 0.5
    t = np.abs(centres[:, None] - np.arange(size)) / scale
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("new", [(6, 9), (2, 3), (4, 5)])
def test_position_tables_are_resized_bicubically_with_antialiasing(new):
    table = np.random.default_rng(0).standard_normal((1 + 4 * 5, 3))
    got = positions.resize_positions(jnp.asarray(table, jnp.float32), (4, 5), new, prefix=1)
    rows, columns = keys_weights(4, new[0]), keys_weights(5, new[1])
    expected = np.einsum("ya,xb,abc->yxc", rows, columns, table[1:].reshape(4, 5, 3))
    np.testing.assert_allclose(got[1:], expected.reshape(-1, 3), atol=1e-5)
    np.testing.assert_array_equal(got[0], table[0].astype(np.float32))
