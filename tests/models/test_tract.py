"""TrAct: the numbers of the paper's rule, and what stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import tract
from tests.models import small

X = np.array([[1.0, 0.0], [1.0, 1.0]])
G = np.array([[1.0, -1.0], [0.0, 2.0]])


def grads(ridge, x=X, g=G):
    product = tract.dot_general(ridge)
    kernel = jnp.full((2, 2), 0.5)

    def loss(x, kernel):
        return jnp.sum(product(x, kernel, None) * g)

    return jax.grad(loss, argnums=(0, 1))(jnp.asarray(x, jnp.float32), kernel)


def test_the_kernel_gradient_is_whitened_and_the_input_one_is_not():
    to_input, to_kernel = grads(0.1)
    # dW [out, in] of the specification, ours is [in, out].
    expected = [[1.463415, -1.219512], [-0.975610, 4.146341]]
    np.testing.assert_allclose(to_kernel.T, expected, rtol=1e-5)
    np.testing.assert_allclose(to_input, G @ np.full((2, 2), 0.5).T, rtol=1e-6)
    np.testing.assert_allclose(1e6 * grads(1e6)[1], X.T @ G, atol=1e-5)


def test_it_equals_the_dual_form_and_bears_fewer_rows_than_columns():
    rng = np.random.default_rng(0)
    x, g, ridge = rng.standard_normal((3, 5)), rng.standard_normal((3, 4)), 0.1
    a = x @ x.T / 3
    dual = np.eye(3) - np.linalg.solve(a / ridge + np.eye(3), a) / ridge
    got = tract.whiten(jnp.asarray(x, jnp.float32), jnp.asarray(x.T @ g, jnp.float32), ridge)
    np.testing.assert_allclose(got, x.T @ dual.T @ g / ridge, atol=2e-4)


def test_in_the_tower_only_the_patch_kernel_s_gradient_changes():
    config = small.change(small.SIGLIP, image={"depth": 1})
    images, _ = small.batch(config)
    found = []
    for first_layer in ("plain", "tract"):
        model = models.build(small.change(config, image={"first_layer": first_layer}))
        params = small.params_for(model)
        run = jax.jit(jax.value_and_grad(lambda p, m=model: m.encode_image(p, images)[:, 0].sum()))
        found.append(run(params))
    (value, plain), (same, whitened) = found
    assert value == pytest.approx(float(same), abs=1e-6)
    plain, whitened = plain["image"], whitened["image"]
    expected = plain["patch_embedding"].pop("kernel")
    x = images.reshape(4, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(16, 48)
    expected = np.linalg.solve(x.T @ x / 16 + 0.1 * np.eye(48), expected)
    np.testing.assert_allclose(whitened["patch_embedding"].pop("kernel"), expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, whitened)


def test_it_wants_a_patch_stem_and_a_ridge():
    for changed in ({"tract_lambda": 0.0}, {"stem": "conv", "stem_widths": (4, 6)}):
        with pytest.raises(
            ValueError, match=r"first_layer='tract' needs model\.image\.stem='patch'"
        ):
            small.change(small.CLIP, image={"first_layer": "tract", **changed})
