"""Masks, their removal, scores of modules, and Net-Trim."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.weights import surgery

RNG = np.random.default_rng(0)
TOWER = {"width": 12, "depth": 3, "num_heads": 3, "mlp_dim": 10}
SIZES = models.CLIPConfig(
    image=models.ImageConfig(image_size=8, patch_size=4, pool="map", rope="yx", **TOWER),
    text=models.TextConfig(vocab_size=20, context_length=5, qk_norm=True, **TOWER),
    embed_dim=8,
)
MASKS = {
    "image": surgery.TowerMasks(
        np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]]), np.eye(3, 10) * 0 + np.arange(10) % 2,
        np.array([1, 0, 1]),
    ),
    "text": surgery.TowerMasks(np.ones((3, 3)) * [0, 1, 0], np.ones((3, 10)), np.ones(3)),
}  # fmt: skip


def drawn(sizes):
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    return jax.tree.map(lambda s: 0.4 * RNG.standard_normal(s.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return drawn(SIZES)


def embed(sizes, params):
    images = np.random.default_rng(1).standard_normal((3, 8, 8, 3), np.float32)
    tokens = np.random.default_rng(1).integers(1, 20, (3, 5), np.int32)
    model = models.build(sizes)
    return jax.jit(lambda p: (model.encode_image(p, images), model.encode_text(p, tokens)))(params)


def test_a_masked_model_is_the_smaller_one(params):
    expected = embed(SIZES, surgery.apply_masks(params, MASKS, SIZES))
    smaller, sizes = surgery.remove_masked(params, SIZES, MASKS)
    assert (sizes.image.depth, sizes.image.num_heads, sizes.image.mlp_dim) == (2, 2, 5)
    assert (sizes.text.depth, sizes.text.num_heads, sizes.text.mlp_dim) == (3, 1, 10)
    assert sizes.image.head_dim == sizes.text.head_dim == 4
    found = embed(sizes, smaller)
    for one, two, whole in zip(found, expected, embed(SIZES, params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
        assert not np.allclose(one, whole, atol=1e-2)
    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(np.shape, smaller)
    again = models.CLIPConfig.from_dict(sizes.to_dict())
    assert again == sizes


def test_full_masks_are_the_identity(params):
    masks = surgery.full_masks(SIZES)
    jax.tree.map(np.testing.assert_array_equal, surgery.apply_masks(params, masks, SIZES), params)
    same, sizes = surgery.remove_masked(params, SIZES, masks)
    assert sizes == SIZES
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_masks_are_data_with_a_gradient(params):
    """A mask on a head whose output map is zero changes nothing; on others it does."""
    tower = params["image"]
    out = tower["blocks_1"]["attention"]["out"]
    kernel = np.array(out["kernel"])
    kernel[4:8] = 0
    block = {**tower["blocks_1"], "attention": {**tower["blocks_1"]["attention"],
                                                "out": {**out, "kernel": kernel}}}  # fmt: skip
    params = {**params, "image": {**tower, "blocks_1": block}}

    def loss(heads):
        masks = {"image": surgery.full_masks(SIZES)["image"]._replace(heads=heads)}
        return jnp.sum(embed(SIZES, surgery.apply_masks(params, masks, SIZES))[0][:, 0])

    gradient = jax.grad(loss)(jnp.ones((3, 3)))
    assert float(gradient[1, 1]) == 0
    assert np.all(np.delete(np.ravel(gradient), 4) != 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]])}, r"heads that stay .* \[1, 2\]"),
        ({"units": np.zeros((3, 10))}, r"units that stay .* \[0\]"),
        ({"layers": np.zeros(3)}, "heads that stay in its layers are none"),
    ],
)
def test_masks_that_are_no_model(params, changes, message):
    masks = {"image": surgery.full_masks(SIZES)["image"]._replace(**changes)}
    with pytest.raises(ValueError, match=message):
        surgery.remove_masked(params, SIZES, masks)


def test_towers_that_can_not_be_pruned():
    image = dataclasses.replace(SIZES.image, sub_norm=True)
    with pytest.raises(ValueError, match=r"model.image: with a norm behind the branches"):
        surgery.full_masks(dataclasses.replace(SIZES, image=image))
    text = dataclasses.replace(SIZES.text, num_experts=2)
    with pytest.raises(ValueError, match="experts have no units"):
        surgery.full_masks(dataclasses.replace(SIZES, text=text))
    with pytest.raises(ValueError, match="head_dim=4 must be 0 or more, and 0 with"):
        dataclasses.replace(SIZES.text, mup_base_width=12, head_dim=4)


def test_sums_by_module_count_each_weight_once(params):
    ones = jax.tree.map(np.ones_like, params)
    counts = surgery.sums_by_module(ones, "image", SIZES)
    np.testing.assert_array_equal(counts.heads, 3 * (12 * 4 + 4) + 4 * 12)
    np.testing.assert_array_equal(counts.units, 12 + 1 + 12)
    np.testing.assert_array_equal(counts.layers, counts.heads.sum(1) + counts.units.sum(1))


def test_hap_of_a_quadratic_is_half_w_squared_h(params):
    """With a Hessian that is h times the identity in a module: 1/2 h |w|^2."""
    h = jax.tree.map(np.ones_like, params)
    kernel = np.ones((10, 12), np.float32)
    kernel[3] = 5.0  # the row of unit 3 of the last layer; its column and bias below
    up = {"kernel": np.ones((12, 10), np.float32), "bias": np.ones(10, np.float32)}
    up["kernel"][:, 3] = up["bias"][3] = 5.0
    h["image"]["blocks_2"]["mlp"] = {
        "up": up, "down": {"kernel": kernel, "bias": h["image"]["blocks_2"]["mlp"]["down"]["bias"]}
    }  # fmt: skip
    h = h["image"]

    found = surgery.hap_scores(params, {"image": h}, "image", SIZES)
    plain = surgery.magnitude_scores(params, "image", SIZES)
    np.testing.assert_allclose(found.heads, plain.heads / 2, rtol=1e-5)
    np.testing.assert_allclose(found.units[2, 3], 2.5 * plain.units[2, 3], rtol=1e-5)
    np.testing.assert_allclose(
        np.delete(found.units, 23), np.delete(plain.units, 23) / 2, rtol=1e-5
    )


def test_mope_scores_what_the_model_loses(params):
    masks = surgery.full_masks(SIZES)

    def score(seen):  # what counts are two heads and a layer's units, known from the weights
        out = seen["image"]["blocks_0"]["attention"]["out"]["kernel"]
        down = seen["text"]["blocks_1"]["mlp"]["down"]["kernel"]
        return 3.0 * bool(np.any(out[0:4])) + 1.0 * bool(np.any(out[8:12])) + bool(np.any(down))

    groups = {"heads": [(0, 0), (0, 1), (0, 2), (1, 0)], "layers": [0, 1]}
    drops = surgery.mope_scores(score, params, masks, SIZES, "image", groups)
    np.testing.assert_array_equal(drops["heads"], [3, 0, 1, 0])
    np.testing.assert_array_equal(drops["layers"], [4, 0])
    drops = surgery.mope_scores(score, params, masks, SIZES, "text", {"units": [(1, range(10))]})
    np.testing.assert_array_equal(drops["units"], [1])


def test_the_best_are_kept():
    scores = np.array([[1.0, 3, 3, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(surgery.keep_best(scores, 2), [[0, 1, 1, 0], [1, 1, 0, 0]])
    with pytest.raises(ValueError, match="0 can't be kept of 4"):
        surgery.keep_best(scores, 0)


def test_net_trim():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 8))
    w = rng.standard_normal((8, 5)) * (rng.random((8, 5)) < 0.6)
    np.testing.assert_allclose(surgery.net_trim(x, x @ w, 0.0), w, atol=2e-3)
    counts = []
    for epsilon in (0.5, 4.0, 9.0):
        u = surgery.net_trim(x, x @ w, epsilon)
        assert np.linalg.norm(x @ u - x @ w) <= 1.02 * epsilon + 1e-2
        counts.append((np.abs(u) > 1e-6).sum())
    assert counts[0] > counts[1] > counts[2] > 0
    y = np.maximum(x @ w, 0)
    u = surgery.net_trim(x, y, 0.5, relu=True)
    assert np.linalg.norm((x @ u - y)[y > 0]) <= 0.52
    assert (x @ u)[y == 0].max() < 0.02
    with pytest.raises(ValueError, match="epsilon=-1 is negative"):
        surgery.net_trim(x, y, -1)
