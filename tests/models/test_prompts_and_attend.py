"""Tokens that a caller puts in, and another attention in chosen blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import vit
from tests.models import small


def close(got, expected, atol=3e-6):
    np.testing.assert_allclose(got, expected, atol=atol)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_inserted_tokens_are_more_tokens_of_the_sequence(clip):
    model, params, images, _ = clip
    prompt = draw(3, 16)
    run = jax.jit(lambda p, x: model.image_features(p, images, insert=x, attention=(0,)))
    features = run(params, prompt)
    assert features.tokens.shape == (4, 4, 16) and features.prefix.shape == (4, 1, 16)
    assert features.aux["inserted"].shape == (4, 3, 16)
    assert features.attention[0].shape == (4, 2, 8, 8)
    # By hand: they are behind the norm and before the first block, anywhere in the sequence.
    own = model.image.embed(params["image"], images).x
    x = jnp.concatenate([own, jnp.broadcast_to(prompt, (4, 3, 16))], axis=1)
    end, _ = model.image.blocks(params["image"], models.Tokens(x))
    close(features.embedding, model.image.head(params["image"], end).embedding)
    # One prompt for each row, the same numbers; and other prompts, others.
    close(run(params, jnp.broadcast_to(prompt, (4, 3, 16))).embedding, features.embedding)
    assert np.abs(run(params, 2 * prompt).embedding - features.embedding).max() > 1e-2


def test_tokens_before_the_norm_pass_through_it(clip):
    model, params, images, _ = clip
    prompt = draw(2, 16)
    insert = models.Insert({0: prompt}, before_norm=True)
    p = params["image"]["norm_pre"]
    x = np.asarray(prompt, np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = jnp.asarray(x * p["scale"] + p["bias"], jnp.float32)
    close(
        model.image.embed(params["image"], images, insert=insert).x,
        model.image.embed(params["image"], images, insert=normed).x,
        1e-5,
    )


def test_later_prompts_replace_or_accumulate(clip):
    model, params, images, _ = clip
    first, second = draw(2, 16), draw(3, 16, seed=1)
    tower, p = model.image, params["image"]
    half, _ = tower.blocks(p, tower.embed(p, images, insert=first), 0, 1)
    for accumulate, before in ((False, half.x[:, 2:]), (True, half.x)):
        x = jnp.concatenate([jnp.broadcast_to(second, (4, 3, 16)), before], axis=1)
        count = 5 if accumulate else 3
        end, _ = tower.blocks(p, models.Tokens(x, inserted=count), 1)
        insert = models.Insert({0: first, 1: second}, accumulate=accumulate)
        features = model.image_features(params, images, insert=insert)
        close(features.embedding, tower.head(p, end).embedding)
        assert features.aux["inserted"].shape == (4, count, 16)


@pytest.mark.parametrize("name", ["causal", "padded"])
def test_a_text_sees_what_is_put_before_it_and_is_pooled_as_before(name):
    changed = {"causal": False, "pool": "mean"} if name == "padded" else {}
    model = models.build(small.change(small.CLIP, text=changed))
    params = small.params_for(model)
    _, tokens = small.batch(small.CLIP)
    prompt = draw(2, 12)
    run = jax.jit(lambda p, x: model.text_features(p, tokens, insert=x, attention=(1,)))
    features = run(params, prompt)
    weights = features.attention[1]  # [B, H, 2 + 6, 2 + 6]
    assert (weights[:, :, 2:, :2] > 0).all()
    if name == "causal":
        assert not np.triu(weights[0, 0], 1).any()
    else:
        assert not weights[0, :, :, 4:].any()  # the first text has 2 tokens
    grad = jax.grad(lambda x: run(params, x).raw.sum())(prompt)
    assert np.abs(grad).min() > 0


def test_context_in_place_of_words(clip):
    """CoOp and MaPLe: a prompt made of the words' own embeddings changes nothing."""
    model, params, _, tokens = clip
    tokens = np.tile(np.array([5, 9, 3, 7, 2, 0], np.int32), (2, 1))
    table = params["text"]["token_embedding"]["embedding"]
    at = jnp.array([1, 2])
    run = jax.jit(
        lambda p, layers: model.text_features(p, tokens, insert=models.Insert(layers, at=at))
    )
    plain = model.encode_text(params, tokens)
    own = jnp.asarray(table[np.array([9, 3])])
    features = run(params, {0: own})
    close(features.embedding, plain)
    assert features.tokens.shape == (2, 6, 12) and "inserted" not in features.aux
    # At a later layer they overwrite the states of these places, and of no others.
    tower, p = model.text, params["text"]
    half, _ = tower.blocks(p, tower.embed(p, tokens), 0, 1)
    deep = draw(2, 12)
    end, _ = tower.blocks(p, models.Tokens(half.x.at[:, 1:3].set(deep), half.valid, half.last), 1)
    close(run(params, {0: own, 1: deep}).embedding, tower.head(p, end).embedding)


def test_mask_tokens_in_place_of_patches(clip):
    """Their positions stay; what the masked patches show is not seen."""
    model, params, images, _ = clip
    images = jnp.asarray(images)
    tower, at = model.image, jnp.tile(jnp.array([1, 3]), (4, 1))
    size, kernel = tower.config.patch_size, params["image"]["patch_embedding"]["kernel"]
    run = jax.jit(
        lambda images, mask: (
            model.image_features(params, images, insert=models.Insert({0: mask}, at=at)).tokens
        )
    )
    mask = draw(2, 16)
    masked = run(images, mask)
    other = images.at[0, :size, size : 2 * size].add(1.0)  # patch 1 of the first picture
    np.testing.assert_array_equal(run(other, mask), masked)
    assert np.abs(run(images.at[0, :size, :size].add(1.0), mask)[0] - masked[0]).max() > 1e-4
    # A patch's own embedding in its place changes nothing.
    pieces = vit.patches(images, size).reshape(4, 4, -1) @ kernel
    own = jnp.broadcast_to(pieces[:1, 1::2], (4, 2, 16))
    plain = model.image_features(params, images).tokens
    close(run(images, own[0])[0], plain[0])


def test_places_do_not_accumulate(clip):
    model, params, _, tokens = clip
    insert = models.Insert({0: draw(1, 12)}, at=jnp.array([1]), accumulate=True)
    with pytest.raises(ValueError, match="nothing can accumulate"):
        model.text_features(params, tokens, insert=insert)


def test_the_own_attention_as_a_function_changes_nothing(clip):
    model, params, images, tokens = clip
    own = {block: lambda q, k, v, bias: models.softmax_weights(q, k, bias) for block in (0, -1)}
    for features, encode, inputs in (
        (model.image_features, model.encode_image, images),
        (model.text_features, model.encode_text, tokens),
    ):

        def loss(p, attend, features=features, inputs=inputs):
            return features(p, inputs, attend=attend).embedding[:, 0].sum()

        got = jax.jit(lambda p, f=features, x=inputs: f(p, x, attend=own).embedding)(params)
        close(got, encode(params, inputs))
    grads = [jax.jit(jax.grad(lambda p, a=a: loss(p, a)))(params)["text"] for a in (own, None)]
    jax.tree.map(lambda a, b: close(a, b, 2e-5), *grads)


def test_switches_of_residual_and_mlp(clip):
    """ClearCLIP's last block: out(A v) alone; MaskCLIP's with A = I: x + out(v), then the MLP."""
    model, params, images, _ = clip
    tower, p = model.image, params["image"]
    half, _ = tower.blocks(p, tower.embed(p, images), 0, 1)
    query, _, value = tower.qkv(p, half.x, 1)
    weights = models.softmax_weights(query, query)
    clear = models.Attend(
        lambda q, k, v, bias: models.softmax_weights(q, q, bias), residual=False, mlp=False
    )
    features = model.image_features(params, images, attend={-1: clear}, hidden=(2,), attention=(1,))
    close(features.hidden[2], tower.attention_out(p, weights, value, 1))
    close(features.attention[1], weights)

    block = p["blocks_1"]
    mask = models.Attend(lambda q, k, v, bias: jnp.eye(q.shape[2])[None, None], mlp=False)
    features = model.image_features(params, images, attend={1: mask}, hidden=(2,))
    v = np.asarray(value).swapaxes(1, 2).reshape(4, 5, 16)
    out = block["attention"]["out"]
    close(features.hidden[2], half.x + (v @ out["kernel"] + out["bias"]), 1e-5)


def test_a_bias_takes_tokens_away_in_all_blocks_or_in_one(clip):
    model, params, images, _ = clip
    hide = jnp.zeros((1, 1, 5, 5)).at[..., 3].set(-1e9)  # nobody sees patch 2
    kept = jnp.broadcast_to(jnp.array([0, 1, 3]), (4, 3))
    run = jax.jit(lambda p, b: model.image_features(p, images, attention_bias=b).embedding)
    close(run(params, hide), model.image_features(params, images, keep=kept).embedding)
    zero = jnp.zeros((1, 1, 5, 5))
    close(run(params, {0: hide, 1: hide}), run(params, hide))
    close(run(params, {0: zero}), model.encode_image(params, images))
    assert np.abs(run(params, {1: hide}) - run(params, hide)).max() > 1e-3
    per_head = jnp.broadcast_to(hide, (4, 2, 5, 5)).at[:, 1].set(0.0)
    assert np.abs(run(params, per_head) - run(params, hide)).max() > 1e-3
