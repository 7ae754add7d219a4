"""Emulated formats against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.models.products import formats


def rounded(name, x):
    return jax.jit(lambda x: formats.lookup(name)(x, -1))(x)


def test_int4_by_hand():
    # s = 7 / 7 = 1 in the first row, 0.7 / 7 in the second.
    x = jnp.asarray([[7.0, -3.4, 0.4, 2.6], [0.7, -0.34, 0.04, 0.26]])
    expected = [[7.0, -3.0, 0.0, 3.0], [0.7, -0.3, 0.0, 0.3]]
    np.testing.assert_allclose(formats.integers(4)(x, -1), expected, atol=1e-6)
    whole = formats.integers(4, whole=True)(x, -1)
    np.testing.assert_allclose(whole, [[7.0, -3.0, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0]], atol=1e-6)


def test_scales_follow_the_axis():
    kernel = jnp.asarray([[7.0, 70.0], [2.6, 26.0]])
    expected = [[7.0, 70.0], [3.0, 30.0]]
    np.testing.assert_allclose(formats.integers(4)(kernel, 0), expected, rtol=1e-6)


def test_mxfp4_grid():
    # Largest 6 = 1.5 * 2^2: scale 1. Ties go to the even mantissa: 2.5 -> 2, 3.5 -> 4, 0.25 -> 0.
    x = jnp.asarray([6.0, 2.5, -3.5, 0.25, 0.3, 5.1, -1.2, 4.9])
    expected = [6.0, 2.0, -4.0, 0.0, 0.5, 6.0, -1.0, 4.0]
    both = rounded("mxfp4", jnp.stack([x, 64 * x, x.at[0].set(7.9)]))
    np.testing.assert_array_equal(both[0], expected)
    np.testing.assert_array_equal(both[1], 64 * np.asarray(expected))
    np.testing.assert_array_equal(both[2], expected)  # 7.9 has scale 1, too, and is cut to 6


def test_blocks_have_scales_of_their_own():
    x = jnp.concatenate([jnp.full(32, 6.0), jnp.full(8, 0.006)])
    np.testing.assert_allclose(rounded("mxfp4", x), x, rtol=0.15)
    np.testing.assert_allclose(rounded("int4", x)[32:], 0)


def test_nvfp4_scale_is_an_e4m3_number():
    x = jnp.asarray([[6.6, 1.1]])
    scale = float(jnp.float32(1.1).astype(jnp.float8_e4m3fn))
    np.testing.assert_allclose(rounded("nvfp4", x), [[6 * scale, scale]], rtol=1e-6)


def test_eight_bit_floats():
    x = jnp.asarray([[448.0, 17.0, -1.06]])  # the row's scale is 1
    np.testing.assert_array_equal(rounded("fp8_e4m3", x), [[448.0, 16.0, -1.0]])
    x = jnp.asarray([[57344.0, 9.0]])
    np.testing.assert_array_equal(rounded("fp8_e5m2", x), [[57344.0, 8.0]])


def test_bfloat16():
    x = np.asarray([1.0, 1.0 + 2**-9, 3.14159], np.float32)
    expected = jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(rounded("bfloat16", x), expected)


# One of each kind, and the coarsest.
@pytest.mark.parametrize("name", ["bfloat16", "fp8_e4m3", "mxfp4", "nvfp4", "int2", "int3_tensor"])
def test_of_every_format(name):
    quantize = formats.lookup(name)
    x = jax.random.normal(jax.random.key(0), (4, 40))

    @jax.jit
    def everything(x):
        gradient = jax.grad(lambda x: jnp.sum(formats.straight_through(quantize, x, -1) * x))(x)
        out = quantize(x, -1), formats.straight_through(quantize, x, -1)
        return quantize(0 * x, -1), quantize(1e-30 * x, -1), *out, gradient

    zeros, small, rounded, through, gradient = everything(x)
    np.testing.assert_array_equal(zeros, 0)
    assert np.isfinite(small).all()
    assert 0 < float(jnp.sqrt(jnp.mean((rounded - x) ** 2))) < 0.7
    np.testing.assert_array_equal(through, rounded)
    np.testing.assert_allclose(gradient, rounded + x, rtol=1e-5, atol=1e-6)


def test_unknown_precision():
    with pytest.raises(ValueError, match="unknown precision 'int5'; did you mean 'int"):
        formats.lookup("int5")


@pytest.mark.parametrize(("bits", "expected"), [(2, 3.764706), (4, 3.984436)])
def test_octav_by_hand(bits, expected):
    x = jnp.asarray([0.1, -0.5, 1.0, -4.0])
    np.testing.assert_allclose(formats.octav_clip(x, None, bits), [expected], rtol=1e-6)
    # Zeros are represented exactly, so that they say nothing of where to clip.
    padded = jnp.concatenate([x, jnp.zeros(3)])
    np.testing.assert_allclose(formats.octav_clip(padded, None, bits), [expected], rtol=1e-6)


def test_octav_of_normal_numbers():
    """The fixed points of the rule for N(0, 1)."""
    x = jax.random.normal(jax.random.key(0), (200_000,))
    found = [float(formats.octav_clip(x, None, bits, 12)[0]) for bits in (2, 3, 4, 8)]
    np.testing.assert_allclose(found, [1.7388, 2.1611, 2.5621, 3.9241], rtol=0.02)


def test_clipped_integers_have_the_smaller_error_where_few_are_large():
    x = jax.random.normal(jax.random.key(0), (4, 4096))
    x = x.at[:, 0].set(12.0)
    errors = [
        float(jnp.mean((formats.lookup(name)(x, -1) - x) ** 2)) for name in ("int4", "int4_octav")
    ]
    assert errors[1] < 0.5 * errors[0]
    np.testing.assert_array_equal(formats.lookup("int4_octav")(0 * x, -1), 0)
