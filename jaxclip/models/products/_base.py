"""What a product is."""

from __future__ import annotations

import abc

import jax
import jax.numpy as jnp


class Product(abc.ABC):
    """Base of all products: frozen dataclasses whose fields are their options."""

    @abc.abstractmethod
    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """[M, K] x [K, N] -> [M, N], in the dtype of ``x``."""

    def check(self) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse options that can't be.

        Raises:
          ValueError: says which.
          ImportError: a library that is not there, with the way to get it.
        """


def int8(x: jax.Array, axis: int | None) -> tuple[jax.Array, jax.Array]:
    """int8 numbers and their scale max|x| / 127, along an axis or of all."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True).astype(jnp.float32)
    scale = jnp.where(largest > 0, largest / 127.0, 1.0)
    return jnp.round(x.astype(jnp.float32) / scale).astype(jnp.int8), scale


def int8_product(
    a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array], contracted: tuple[int, int]
) -> jax.Array:
    """float32: the product of int8 matrices with their scales; sums are int32."""
    (x, x_scale), (y, y_scale) = a, b
    sums = jax.lax.dot_general(
        x, y, (((contracted[0],), (contracted[1],)), ((), ())), preferred_element_type=jnp.int32
    )
    return sums.astype(jnp.float32) * x_scale * y_scale
