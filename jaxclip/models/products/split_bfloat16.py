"""float32 products out of bfloat16 ones (Henry, Tang and Heinecke, 2019, arXiv:1904.06376)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxclip.models.products._base import Product


@dataclasses.dataclass(frozen=True)
class SplitBfloat16(Product):
    """Each factor is a number of bfloat16 and a remainder, of bfloat16 too; sums are float32.

    Two terms, x₁w₁ + x₁w₂, keep the weights (to 2⁻¹⁷) and round activations; three, with x₂w₁, keep
    both. Use it with ``precision.compute_dtype="float32"``: what is bfloat16 already has no
    remainder. The backward pass multiplies in the same way.

    XLA has the product of three terms itself (``jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3``) on
    accelerators; CPUs take float32 for it, so that what it loses could not be seen there. There is
    none of two terms.

    Attributes:
      terms: 2 or 3.
    """

    terms: int = 2

    def check(self) -> None:
        if self.terms not in (2, 3):
            raise ValueError(f"terms={self.terms} of split_bfloat16 must be 2 or 3")

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _product(self.terms, x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(terms: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    (high, low), (kernel_high, kernel_low) = _parts(x), _parts(kernel)
    out = _matmul(high, kernel_high) + _matmul(high, kernel_low)
    return (out + _matmul(low, kernel_high) if terms == 3 else out).astype(x.dtype)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Not by astype there and back, which XLA may take for nothing (xla_allow_excess_precision).
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _forward(
    terms: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(terms, x, kernel), (x, kernel)


def _backward(
    terms: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    to_kernel = _product(terms, x.T, gradient.astype(x.dtype))
    return _product(terms, gradient, kernel.T), to_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)
