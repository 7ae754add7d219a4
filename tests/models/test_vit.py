"""The pieces of the image tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import vit
from tests.models import small


def test_patches_are_cut_row_by_row():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    cut = vit.patches(jnp.asarray(images), 2)
    assert cut.shape == (2, 2, 3, 12)
    for y in range(2):
        for x in range(3):
            square = images[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            np.testing.assert_array_equal(cut[:, y, x], square.reshape(2, -1))


def test_the_patch_stem_is_a_strided_convolution():
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 5)).astype(np.float32)
    images = np.random.default_rng(1).standard_normal((2, 8, 8, 3)).astype(np.float32)
    expected = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(
        vit.patches(jnp.asarray(images), 4) @ kernel.reshape(-1, 5), expected, atol=1e-5
    )


def test_sincos_positions():
    grid, width, temperature = 3, 8, 100.0
    table = vit.sincos_positions(grid, width, temperature)
    assert table.shape == (9, 8) and table.dtype == np.float32
    for y in range(grid):
        for x in range(grid):
            # Two wavelengths: 2π and 2π · temperature.
            waves = np.array([1.0, 1.0 / temperature])
            parts = [np.sin(x * waves), np.cos(x * waves), np.sin(y * waves), np.cos(y * waves)]
            np.testing.assert_allclose(table[y * grid + x], np.concatenate(parts), atol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4, got 10"):
        vit.sincos_positions(3, 10)


def test_sincos_positions_have_no_parameter_and_spare_the_class_token():
    learned = models.build(small.CLIP)
    fixed_config = small.change(small.CLIP, image={"positions": "sincos"})
    fixed = models.build(fixed_config)
    params = small.params_for(fixed)
    assert "positions" not in params["image"]
    # The same model with the table as learned positions.
    table = np.concatenate([np.zeros((1, 16)), vit.sincos_positions(2, 16)])
    same = {**params, "image": {**params["image"], "positions": jnp.asarray(table, jnp.float32)}}
    images, _ = small.batch(small.CLIP)
    np.testing.assert_allclose(
        jax.jit(fixed.encode_image)(params, images),
        jax.jit(learned.encode_image)(same, images),
        atol=1e-6,
    )


def conv3x3(x, kernel, bias):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((*x.shape[:3], kernel.shape[3]))
    for dy in range(3):
        for dx in range(3):
            out += padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]] @ kernel[dy, dx]
    return out + bias


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / scale * np.asarray(p["scale"], np.float64) + np.asarray(p["bias"], np.float64)


def test_convolutional_stem():
    """Two stages: patches of 2, one residual convolution, halving, one residual convolution."""
    config = small.change(
        small.CLIP,
        image={"stem": "conv", "stem_widths": (4, 6), "activation": "quick_gelu", "depth": 1},
    )
    model = models.build(config)
    images, _ = small.batch(config, size=2)
    variables = {"params": small.params_for(model)["image"]}
    apply = functools.partial(model.image.embedding.apply, capture_intermediates=True)
    _, kept = jax.jit(apply)(variables, images)
    embedded = kept["intermediates"]["stem_out"]["__call__"][0]

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = np.asarray(images, np.float64)
    for stage in range(2):
        side = x.shape[1] // 2
        x = x.reshape(2, side, 2, side, 2, -1).swapaxes(2, 3).reshape(2, side, side, -1)
        x = x @ p[f"stem_{stage}_reduce"]["kernel"] + p[f"stem_{stage}_reduce"]["bias"]
        x = norm(x, p[f"stem_{stage}_norm"])
        y = norm(conv3x3(x, **p[f"stem_{stage}_conv_0"]), p[f"stem_{stage}_conv_norm_0"])
        x = x + y / (1 + np.exp(-1.702 * y))
    expected = x.reshape(2, 4, 6) @ p["stem_out"]["kernel"] + p["stem_out"]["bias"]
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
