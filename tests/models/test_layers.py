"""Remat and scanned layers change memory and compile time, never values or parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import remat as remat_lib
from tests.models import small

CONFIG = small.change(small.CLIP, image={"depth": 2}, text={"depth": 1})


def value_and_grad(model, params, images):
    def scalar(params):
        embeddings = model.encode_image(params, images)
        return jnp.sum(embeddings[:2] * embeddings[2:]) + jnp.sum(embeddings[:, 0])

    return jax.jit(jax.value_and_grad(scalar))(params)


@pytest.fixture(scope="module")
def plain():
    model = models.build(CONFIG)
    params = small.params_for(model)
    images, _ = small.batch(CONFIG)
    return params, images, value_and_grad(model, params, images)


@pytest.mark.parametrize(
    ("remat", "scan_layers"),
    [("full", False), ("none", True), ("attention", True), ("qkv+mlp", False)],
)
def test_switches_leave_values_gradients_and_layout_alone(plain, remat, scan_layers):
    params, images, expected = plain
    model = models.build(CONFIG, remat=remat, scan_layers=scan_layers)
    drawn = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, params)
    assert "blocks_1" in drawn["image"]
    loss, grads = value_and_grad(model, params, images)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected[1])


def residual_bytes(remat, scan_layers=False):
    """What the forward pass hands to the backward one, beside the parameters."""
    model = models.build(CONFIG, remat=remat, scan_layers=scan_layers)
    params = jax.eval_shape(model.init, jax.random.key(0))
    images, tokens = small.batch(CONFIG, size=64)

    def encode(params):
        return model.encode_image(params, images), model.encode_text(params, tokens)

    pull = jax.eval_shape(lambda params: jax.vjp(encode, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


def test_remat_keeps_what_its_name_says():
    names = ("none", "dots", "qkv+mlp", "attention+mlp", "mlp", "qkv", "attention", "full")
    kept = {name: residual_bytes(name) for name in names}
    assert kept["attention"] < kept["qkv"] < kept["qkv+mlp"] < kept["dots"] < kept["none"]
    # One array of the attention's outputs a block, no more: [64, L, C] float32.
    image, text = 64 * 5 * 16 * 4, 64 * 6 * 12 * 4
    assert kept["attention"] - kept["full"] == 2 * image + text
    # What a name keeps is added up, once.
    for joined in ("attention+mlp", "qkv+mlp"):
        parts = sum(kept[name] - kept["full"] for name in joined.split("+"))
        assert kept[joined] - kept["full"] == parts
    assert residual_bytes("qkv+attention") == kept["qkv"]


@pytest.mark.parametrize("remat", ["half", "", "none+mlp", "dots+mlp", "mlp+", "full+attention"])
def test_unknown_policies_are_refused(remat):
    with pytest.raises(ValueError, match=re.escape(f"remat={remat!r}; use 'none', 'full'")):
        remat_lib.remat_policy(remat)


def test_scanned_layers_compile_one_block():
    def blocks_in(scan_layers):
        model = models.build(CONFIG, scan_layers=scan_layers)
        params = jax.eval_shape(model.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
        text = jax.jit(model.encode_image).lower(params, images).as_text()
        return text.count("stablehlo.exponential")  # one softmax a block

    assert blocks_in(False) == 2 and blocks_in(True) == 1
