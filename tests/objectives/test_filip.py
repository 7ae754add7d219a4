"""Contrast by the best match of tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, models, parallel
from jaxclip.objectives.filip import FILIP
from tests.objectives import fixture_g as g

TOWER = {"width": 4, "num_heads": 1}
SIZES = models.CLIPConfig(models.ImageConfig(**TOWER), models.TextConfig(**TOWER), embed_dim=2)


def similarity_in_float64(images, texts, mask):
    products = np.einsum("apd,bqd->abpq", *(np.asarray(x, np.float64) for x in (images, texts)))
    real = np.asarray(mask)[None, :, None, :]
    to_text = np.where(real, products, -np.inf).max(-1).mean(-1)
    to_image = (products.max(-2) * mask).sum(-1) / np.asarray(mask).sum(-1)
    return to_text, to_image


def tokens(size=16, seed=0):
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(size, 5, 3)), rng.normal(size=(size, 4, 3))
    mask = np.arange(4) < rng.integers(1, 5, (size, 1))
    return jnp.asarray(images, jnp.float32), jnp.asarray(texts, jnp.float32), jnp.asarray(mask)


def test_numbers_of_the_specification():
    v = jnp.array([[[1.0, 0], [0, 1]], [[-1, 0], [0, -1]]])
    t = jnp.array([[[1.0, 0], [0.6, 0.8]], [[0, -1], [5, 5]]])
    to_text, to_image = losses.tokenwise_similarity(v, t, jnp.array([[True, True], [True, False]]))
    np.testing.assert_allclose(to_text, [[0.9, -0.5], [-0.3, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(to_image, [[0.9, 0], [-0.3, 1]], rtol=1e-6)


@pytest.mark.parametrize("tile_size", [1, 4, 5, 100])
def test_tiles_do_not_change_it(tile_size):
    images, texts, mask = tokens()
    result = losses.tokenwise_similarity(images, texts, mask, tile_size=tile_size)
    for ours, theirs in zip(result, similarity_in_float64(images, texts, mask), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_devices_change_neither_value_nor_gradient():
    arrays = tokens()
    mesh = parallel.make_mesh({"data": 4, "tensor": 2})

    def value(images, texts, mask, mesh=None):
        a, b = losses.tokenwise_similarity(images, texts, mask, tile_size=2, mesh=mesh)
        return jnp.sum(jnp.sin(a) + b * b)

    whole = jax.jit(jax.value_and_grad(value, (0, 1)))(*arrays)
    sharded = jax.device_put(arrays, parallel.batch_sharding(mesh))
    cut = jax.jit(jax.value_and_grad(lambda *x: value(*x, mesh=mesh), (0, 1)))(*sharded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, cut)


def test_no_matrix_of_all_tokens_is_held():
    images, texts, mask = (jnp.tile(x, (4, *[1] * (x.ndim - 1))) for x in tokens())  # 64 pairs

    def value(images, texts):
        return sum(map(jnp.sum, losses.tokenwise_similarity(images, texts, mask, tile_size=8)))

    text = jax.jit(jax.grad(value, (0, 1))).lower(images, texts).as_text()
    assert "64x64x5x4x" not in text and "8x8x5x4x" in text


def test_one_token_each_is_clip():
    images, texts = g.I[:, None], g.T[:, None]
    made = {"images": images, "texts": texts, "mask": jnp.ones((3, 1), bool)}
    made |= {"image": g.I, "text": g.T}
    objective = FILIP(contrastive=0.0)
    loss, metrics, _ = objective.loss({"logit_scale": jnp.log(10.0)}, {}, made, g.context())
    assert float(loss) == pytest.approx(0.1081597, rel=1e-6)
    assert metrics["token"] == loss and "clip" not in metrics
    loss, metrics, _ = FILIP().loss({"logit_scale": jnp.log(10.0)}, {}, made, g.context())
    assert float(metrics["clip"]) == pytest.approx(0.1081597, rel=1e-6)
    assert float(loss) == pytest.approx(2 * 0.1081597, rel=1e-6)


def test_the_kept_tokens_are_those_that_fit_their_pair_and_no_padding():
    objective = FILIP(features=3, keep_tokens=2)
    params = g.own_params(objective, SIZES)
    rng = np.random.default_rng(0)
    mask = jnp.array([[True, True, True], [True, False, False]])
    made = {
        "image_tokens": jnp.asarray(rng.normal(size=(2, 5, 4)), jnp.float32),
        "text_tokens": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32),
        "text_mask": mask,
    }
    ctx = g.context(size=2)
    everything, kept = (each.rows(params, made, ctx) for each in (FILIP(features=3), objective))
    assert kept["images"].shape == kept["texts"].shape == (2, 2, 3)
    assert kept["mask"].tolist() == [[True, True], [True, False]]
    v, t = np.asarray(everything["images"]), np.asarray(everything["texts"])
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), 1, rtol=1e-5)
    scores = (v[0] @ t[0].T).sum(1)
    np.testing.assert_allclose(kept["images"][0], v[0][np.argsort(-scores)[:2]], rtol=1e-5)
    np.testing.assert_array_equal(kept["texts"][1, 0], t[1, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, r"filip\.features=0 must be a whole number of at least 1"),
        ({"keep_tokens": -1}, r"filip\.keep_tokens=-1"),
        ({"token_weight": -0.5}, r"filip\.token_weight=-0\.5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FILIP(**options)
