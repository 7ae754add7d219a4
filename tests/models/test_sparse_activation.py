"""Sparse activations: the paper's numbers by quadrature, and their names."""

import math

import numpy as np
import pytest

from jaxclip import models
from jaxclip.models import layers, sparse_activation


@pytest.mark.parametrize(
    ("height", "expected"), [(math.inf, (3.3333, 0.3328, 1.0)), (1.0, (4.2320, 0.4783, 0.4717))]
)
def test_initial_variances(height, expected):
    np.testing.assert_allclose(sparse_activation.threshold(0.7), 0.5244, atol=1e-4)
    np.testing.assert_allclose(sparse_activation.variances(0.7, height), expected, atol=2e-4)


@pytest.mark.parametrize("height", [0.5, 2.0, math.inf])
def test_a_layer_keeps_its_second_moment(height):
    """sigma_w^2 E phi(z)^2 + sigma_b^2 = 1, by quadrature; the slope by differences."""
    z = np.linspace(-9, 9, 400_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    phi = lambda x: np.clip(x - sparse_activation.threshold(0.6), 0, height)  # noqa: E731
    v = sparse_activation.variances(0.6, height)

    def variance_map(q):
        return v.weight * np.sum(phi(np.sqrt(q) * z) ** 2 * density) + v.bias

    np.testing.assert_allclose(variance_map(1.0), 1, atol=1e-5)
    slope = (variance_map(1.001) - variance_map(0.999)) / 0.002
    np.testing.assert_allclose(v.slope, slope, atol=1e-3)
    found = np.asarray(sparse_activation.activation(0.6, height)(z[::1000]))
    np.testing.assert_allclose(found, phi(z[::1000]), atol=1e-5)


def test_names():
    fn = layers.activation("sparse(0.7, 1.0)")
    np.testing.assert_allclose(fn(np.array([0.0, 1.0244, 9.0])), [0, 0.5, 1], atol=1e-4)
    assert layers.activation("gelu") is layers.ACTIVATIONS["gelu"]
    models.TextConfig(activation="sparse(0.9, inf)")
    for wrong in ("sparse(1.2, 1)", "sparse(0.5)", "sparse(0.7.1, 1)", "sparse", "relu"):
        with pytest.raises(ValueError, match=r"use 'gelu', .* or 'sparse"):
            models.ImageConfig(activation=wrong)
