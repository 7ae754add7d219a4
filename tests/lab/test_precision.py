"""Which layers the lab's precisions reach."""

import jax
import numpy as np
import pytest

from jaxclip import config as config_lib
from jaxclip.lab import precision
from jaxclip.models.products import formats
from jaxclip.train import towers


@pytest.fixture(scope="module")
def plain():
    tower = {"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}
    config = config_lib.resolve(
        {
            "data": {"image_size": 8},
            "tokenizer": {"context_length": 4},
            "model": {"image": {"patch_size": 4, **tower}, "text": tower, "embed_dim": 8},
        }
    )
    model = towers.build_model(config)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), shapes)
    images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
    return towers.from_config(config, model), params, images


def encode(towers, params, images):
    return jax.jit(lambda params: towers.encode(params, "image", images))(params)


def test_only_linear_layers_of_blocks_are_rounded(plain):
    """With a format that gives zeros, blocks add their biases alone: zero."""
    own, params, images = plain
    zeros = precision.QuantizedTowers(own, lambda x, axis: 0 * x)
    without = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "blocks_0" in str(path) and "kernel" in str(path) else x, params
    )
    expected = encode(own, without, images)
    np.testing.assert_allclose(encode(zeros, params, images), expected, rtol=1e-6)
    assert not np.allclose(expected, encode(own, params, images), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "outside"), [("", 1.0), ("_clipped", 0.0), ("_mad", 3.764706 / 4)]
)
def test_names_say_what_the_gradient_is_beyond_the_clip(name, outside):
    """int2 of (.1, -.5, 1, -4) clips at 3.764706."""
    x = np.float32([[0.1, -0.5, 1.0, -4.0]])
    rounding = precision.lookup(f"int2_octav{name}")
    slope = jax.grad(lambda x: rounding(x, -1).sum())(x)[0]
    np.testing.assert_allclose(slope, [1.0, 1.0, 1.0, outside], rtol=1e-5)
    np.testing.assert_array_equal(rounding(x, -1), formats.lookup("int2_octav")(x, -1))
    assert precision.lookup("float32") is None


def test_what_is_rounded(plain):
    own, params, images = plain
    quantize, seen = formats.lookup("int4"), []

    def spy(x, axis):
        seen.append((x.shape, axis))
        return quantize(x, axis)

    out = encode(precision.QuantizedTowers(own, spy), params, images)
    kernels = [shape for shape, axis in seen if axis == 0]
    inputs = [shape for shape, axis in seen if axis == -1]
    assert len(kernels) == 12  # of both towers
    assert inputs == [(3, 4, 8)] * 5 + [(3, 4, 16)]
    assert not np.allclose(out, encode(own, params, images), atol=1e-4)
