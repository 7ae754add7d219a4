"""Linear layers on flattened leading axes: the same numbers, and gradients of one contraction."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from tests.models import small

CONV = small.change(
    small.CLIP,
    image={"image_size": 16, "patch_size": 8, "stem": "conv", "stem_widths": (6, 10), "depth": 1},
    text={"depth": 1},
)


def loss_of(model, images, tokens):
    def loss(params):
        image = model.encode_image(params, images)
        text = model.encode_text(params, tokens)
        return jnp.sum(jnp.sin(image[:, :8]) * jnp.cos(text[:, :8]))

    return loss


def test_values_and_gradients_are_the_same():
    plain = models.build(CONV)
    flat = models.build(CONV, flat_products=True)
    params = small.params_for(plain)
    side = CONV.image.image_size
    images = jax.random.normal(jax.random.key(0), (3, side, side, 3))
    tokens = jnp.array([[3, 5, 7, 0, 0, 0], [4, 1, 1, 2, 9, 8], [2, 0, 0, 0, 0, 0]])
    got = jax.jit(jax.value_and_grad(loss_of(flat, images, tokens)))(params)
    expected = jax.jit(jax.value_and_grad(loss_of(plain, images, tokens)))(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flat", [False, True])
def test_weight_gradients_contract_over_one_axis(flat):
    model = models.build(small.CLIP, flat_products=flat)
    params = small.params_for(model)
    images, tokens = jnp.ones((3, 8, 8, 3)), jnp.ones((3, 6), jnp.int32)
    jaxpr = str(jax.make_jaxpr(jax.grad(loss_of(model, images, tokens)))(params))
    over_two = re.findall(r"dimension_numbers=\(\(\[0, ?1\]", jaxpr)
    # That of the plain layers is the copy that flat ones are for: if it is gone, so can they.
    assert bool(over_two) is not flat
