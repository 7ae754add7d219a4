"""SwitchBack: int8 where it does little harm (Wortsman et al., 2023, arXiv:2304.13013)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip.models.products._base import Product, int8, int8_product


@dataclasses.dataclass(frozen=True)
class SwitchBack(Product):
    """y = q_row(x) q_tensor(w) and dx = q_row(dy) q_tensor(w)ᵀ in int8; dw = xᵀdy as it is.

    The kernel's gradient sums over all tokens of the batch, where rounding adds up: that product
    keeps its precision. The products are int8 ones, which an accelerator does fast.
    """

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _product(x, kernel)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return int8_product(int8(x, 1), int8(kernel, None), (1, 0)).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(
    kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    to_x = int8_product(int8(gradient, 1), int8(kernel, None), (1, 1)).astype(x.dtype)
    to_kernel = jnp.matmul(x.T, gradient, preferred_element_type=jnp.float32)
    return to_x, to_kernel.astype(kernel.dtype)


_product.defvjp(_forward, _backward)
