"""Blocks, positions and pools of EVA, Perception Encoder, CLIPA and Alpha-CLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import layers, rotary
from jaxclip.models.attention_logits import largest_attention_logits
from tests.models import reference, small

EVA02 = {
    "pre_norm": False, "patch_bias": True, "norm_eps": 1e-6, "projection": "linear_bias",
    "qkv_bias": "qv", "mlp": "gated", "activation": "silu", "sub_norm": True, "rope": "yx",
    "rope_grid": 3,
}  # fmt: skip
PE = {
    "pool": "map", "class_token": True, "pool_prefix": True, "pool_heads": 4, "rope": "xy",
    "pool_mlp_dim": 12, "rope_offset": 1.0, "projection": "linear_bias",
}  # fmt: skip
EVA_18B = {"norm": "rms", "norm_place": "post", "qkv_bias": "none", "norm_eps": 1e-6}
CLIPA = {"pool": "mean", "class_token": True, "pre_norm": False, "norm_after_pool": True}
MIXED = CLIPA | {"layer_scale": 0.1, "alpha": True, "norm_after_pool": False, "pool_prefix": True}


@pytest.fixture(scope="module")
def images():
    return small.batch(small.CLIP, size=2)[0]


def config(changes, **more):
    return small.change(small.CLIP, image={**changes, **more})


@pytest.mark.parametrize("changes", [EVA02, PE, EVA_18B, CLIPA, MIXED], ids=range(5))
def test_embeddings_are_those_of_a_float64_version(changes, images):
    sizes = config(changes)
    model = models.build(sizes)
    params = small.params_for(model)
    found = jax.jit(model.encode_image)(params, images)
    np.testing.assert_allclose(found, reference.encode_image(params, sizes, images), atol=2e-6)


def test_a_score_depends_on_the_offset_alone():
    turns = jnp.asarray(rotary.angles((4, 5), 4, "yx"))
    x = jnp.tile(jnp.asarray([1.0, 0.0, 1.0, 0.0]), (1, 20, 1, 1))
    y = rotary.rotate(x, turns)[0, :, 0]
    scores = (y @ y.T).reshape(4, 5, 4, 5)
    for row, column in ((0, 0), (2, 1)):
        # cos 1 + cos 2
        assert scores[row, column, row + 1, column + 2] == pytest.approx(0.124155, abs=1e-6)


def test_rotary_places_are_stretched_to_the_reference_and_ordered():
    grid = rotary.angles((2, 4), 8, "yx", reference=16, offset=0.0)
    np.testing.assert_allclose(grid[5], [8, 0.08, 4, 0.04], rtol=1e-6)  # row 1, column 1
    plain = rotary.angles((2, 4), 8, "xy", offset=1.0)
    np.testing.assert_allclose(plain[6], [3, 0.03, 2, 0.02], rtol=1e-6)  # row 1, column 2
    with pytest.raises(ValueError, match="heads of a multiple of 4 channels, not 6"):
        rotary.angles((2, 2), 6, "yx")


def test_the_root_mean_square_norm():
    out = layers.norm(0.0, jnp.float32, None, "rms").apply(
        {"params": {"scale": jnp.ones(2)}}, jnp.asarray([[3.0, 4.0]])
    )
    np.testing.assert_allclose(out, [[0.848528, 1.131371]], atol=1e-6)


def test_patches_that_are_kept_keep_their_angles_and_inserted_tokens_have_none(images):
    """One block with all weights asked for: scores of kept pairs are those of the whole picture."""
    sizes = config(EVA02, depth=1)
    model = models.build(sizes)
    params = small.params_for(model)
    tower, p = model.image, params["image"]

    @jax.jit
    def scores(keep=None, insert=None):
        tokens = tower.embed(p, images, keep=keep, insert=insert)
        query, key, _ = tower.qkv(p, tokens.x, 0, tower.turns(tokens))
        return jnp.einsum("bhqd,bhkd->bhqk", query, key)

    whole = np.asarray(scores())
    keep = np.asarray([[3, 1], [0, 2]])
    rows = np.asarray([[0, 4, 2], [0, 1, 3]])  # the class token stands first
    kept = np.asarray(scores(keep=keep))
    for b in range(2):
        np.testing.assert_allclose(kept[b], whole[b][:, rows[b]][:, :, rows[b]], atol=1e-5)
    more = scores(insert=np.ones((2, sizes.image.width), np.float32))
    np.testing.assert_allclose(more[:, :, 2:, 2:], whole, atol=1e-5)


def test_the_largest_logits_are_of_turned_queries_and_keys(images):
    model = models.build(config(EVA02, depth=1))
    params = small.params_for(model)
    tower, p = model.image, params["image"]

    @jax.jit
    def run(p):
        tokens = tower.embed(p, images)
        query, key, _ = tower.qkv(p, tokens.x, 0, tower.turns(tokens))
        expected = jnp.einsum("bhqd,bhkd->bhqk", query, key).max((0, 2, 3)) / 8**0.5
        found = largest_attention_logits(tower, p, images)[0]
        return found, expected, query, tower.qkv(p, tokens.x, 0)[0]

    found, expected, turned, plain = run(p)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(plain, turned)


def test_the_loop_over_blocks_computes_the_same(images):
    sizes = config({**EVA02, "layer_scale": 0.1})
    params = small.params_for(models.build(sizes))
    results = [
        jax.jit(models.build(sizes, scan_layers=scan, remat=remat).encode_image)(params, images)
        for scan, remat in ((False, "none"), (True, "full"))
    ]
    np.testing.assert_allclose(*results, atol=1e-6)


def test_alpha_starts_without_effect_and_is_one_where_it_is_not_given(images):
    base, with_alpha = (models.build(config({}, alpha=alpha)) for alpha in (False, True))
    params = small.params_for(with_alpha)
    mask = np.random.default_rng(1).random((*images.shape[:3], 1)).astype(np.float32)
    masked = np.concatenate([images, mask], axis=-1)
    full = np.concatenate([images, np.ones_like(mask)], axis=-1)
    encode = jax.jit(with_alpha.encode_image)
    np.testing.assert_allclose(encode(params, images), encode(params, full), atol=1e-6)
    assert np.abs(encode(params, masked) - encode(params, full)).max() > 1e-3
    kernel = params["image"].pop("alpha_embedding")["kernel"]
    expected = jax.jit(base.encode_image)(params, images)
    params["image"]["alpha_embedding"] = {"kernel": np.zeros_like(kernel)}
    np.testing.assert_allclose(encode(params, masked), expected, atol=1e-6)
    drawn = jax.eval_shape(with_alpha.init, jax.random.key(0))["image"]["alpha_embedding"]
    assert drawn["kernel"].shape == (16, 16)
    with pytest.raises(ValueError, match=r"images of shape .*4\)"):
        base.encode_image(params, masked)


def test_the_text_is_read_at_its_first_end():
    sizes = small.change(small.CLIP, text={"pool": "eos", "eos_id": 2})
    model = models.build(sizes)
    params = small.params_for(model)
    tokens = np.asarray([[5, 6, 2, 1, 1, 1], [5, 6, 7, 8, 9, 2]], np.int32)
    found = jax.jit(model.text_features)(params, tokens)
    last = np.asarray(found.tokens)[np.arange(2), [2, 5]]
    np.testing.assert_allclose(found.pooled, last, atol=1e-6)


def test_a_text_tower_without_projection():
    text = {"projection": "none", "width": 8, "num_heads": 2}
    sizes = small.change(small.CLIP, text=text)
    model = models.build(dataclasses.replace(sizes, embed_dim=8))
    params = small.params_for(model)
    assert "projection" not in params["text"]
    found = jax.jit(model.text_features)(params, small.batch(sizes)[1])
    np.testing.assert_allclose(found.raw, found.pooled, atol=1e-6)
