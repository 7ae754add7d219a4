"""TrAct: a whitened gradient of the first layer (Petersen et al., 2024, arXiv:2410.23970).

For z = x W with rows x of all patches of the batch and g = dL/dz, the gradient of W is
(xᵀx/m + λI)⁻¹ xᵀg in place of xᵀg. Values, and the gradients of the bias and of the input, stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def dot_general(ridge: float) -> Callable[..., jax.Array]:
    """A product for ``nn.Dense(dot_general=…)`` with TrAct's gradient of the kernel.

    The patches are those of one pass through the tower, on all devices. With micro-batches each
    pass would be whitened by its own patches alone: there the training step takes the plain
    gradient of all of them, and whitens the sum (:func:`solve`).

    Args:
      ridge: λ; 0.1 in the paper.
    """

    def product(x: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
        del dimensions, options  # nn.Dense contracts the last axis of x with the kernel's first
        out = _product(ridge, x.reshape(-1, x.shape[-1]), kernel)
        return out.reshape(*x.shape[:-1], kernel.shape[-1])

    return product


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(ridge: float, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(ridge: float, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return x @ kernel, (x, kernel)


def _backward(ridge: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    to_kernel = whiten(x, jnp.matmul(x.T, gradient, preferred_element_type=jnp.float32), ridge)
    return gradient @ kernel.T, to_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def moment(x: jax.Array) -> jax.Array:
    """xᵀx of [m, n] inputs: float32[n, n]."""
    return jnp.matmul(
        x.T, x, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )


def solve(total: jax.Array, count: int, gradient: jax.Array, ridge: float) -> jax.Array:
    """(total/m + λI)⁻¹ times a gradient, in float32.

    Args:
      total: [n, n], :func:`moment` of all inputs.
      count: m, how many they are.
      gradient: [n, k], the kernel's, xᵀg.
      ridge: λ > 0.
    """
    matrix = total / count + ridge * jnp.eye(total.shape[0], dtype=jnp.float32)
    factor = jax.scipy.linalg.cho_factor(matrix)
    return jax.scipy.linalg.cho_solve(factor, gradient.astype(jnp.float32))


def whiten(x: jax.Array, gradient: jax.Array, ridge: float) -> jax.Array:
    """(xᵀx/m + λI)⁻¹ times a gradient, in float32.

    Args:
      x: [m, n], all inputs of the layer.
      gradient: [n, k], the kernel's, xᵀg.
      ridge: λ > 0.
    """
    return solve(moment(x), x.shape[0], gradient, ridge)
