"""1-bit fully quantised training: gradients of one bit on average (Gao et al., 2024).

"1-Bit FQT: Pushing the Limit of Fully Quantized Training to 1-bit", arXiv:2408.14267, for
fine-tuning: training from scratch is not claimed there.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxclip.models.products._base import Product


@dataclasses.dataclass(frozen=True)
class OneBit(Product):
    """The forward product as it is; in the backward ones dy has ``bits`` bits in 1 / ``bits`` rows.

    Rows of dy are those of tokens; those of the largest elements are kept, all others are zero, and
    nothing makes up for them (as the released code does it). What is kept is rounded stochastically
    between its smallest and largest value: by row for dx, by column for dw.

    Attributes:
      bits: b; 1 keeps all rows.
      binary: also multiply signs in the forward pass, times their mean magnitudes (by row of the
        activations and column of the kernel), with straight-through gradients within ±1.
    """

    bits: int = 4
    binary: bool = False

    def check(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits={self.bits} must be from 1 to 8")

    def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        if self.binary:
            x, kernel = signs(x, 1), signs(kernel, 0)
        return _product(self.bits, x, kernel)


def signs(x: jax.Array, axis: int) -> jax.Array:
    """sign(x) mean|x| along an axis; the gradient is that of x where |x| <= 1, else 0."""
    held = jax.lax.stop_gradient(x)
    value = jnp.where(held >= 0, 1.0, -1.0) * jnp.mean(jnp.abs(held), axis=axis, keepdims=True)
    return value.astype(x.dtype) + jnp.where(jnp.abs(held) <= 1, x - held, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(bits: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(
    bits: int, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ kernel, (x, kernel)


def _backward(
    bits: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    # No key reaches a backward pass. The gradient's own bits are one: the same for the same step,
    # whatever was stopped and gone on with, and another one in each step and layer.
    seed = jax.lax.bitcast_convert_type(jnp.sum(jnp.abs(gradient), dtype=jnp.float32), jnp.uint32)
    row_key, column_key = jax.random.split(jax.random.key(seed))
    chosen = keep_rows(gradient, -(-gradient.shape[0] // bits))
    by_row, by_column = (
        stochastic_round(chosen, key, bits, axis) for key, axis in ((row_key, 1), (column_key, 0))
    )
    stays = jnp.any(chosen != 0, axis=1, keepdims=True)
    by_row, by_column = (jnp.where(stays, g, 0) for g in (by_row, by_column))
    return by_row @ kernel.T, x.T @ by_column


_product.defvjp(_forward, _backward)


def keep_rows(gradient: jax.Array, count: int) -> jax.Array:
    """The ``count`` rows of the largest elements; the others are zero.

    Args:
      gradient: [M, N].
      count: 1 to M.
    """
    largest = jnp.max(jnp.abs(gradient), axis=1)
    _, kept = jax.lax.top_k(largest, count)
    mask = jnp.zeros(largest.shape, bool).at[kept].set(True)
    return jnp.where(mask[:, None], gradient, 0)


def stochastic_round(x: jax.Array, key: jax.Array, bits: int, axis: int) -> jax.Array:
    """x rounded to one of 2^bits values between its least and greatest along an axis; unbiased.

    Args:
      x: [M, N].
      key: a PRNG key.
      bits: 1 or more.
      axis: along which the values are spread.
    """
    low = jnp.min(x, axis=axis, keepdims=True)
    span = jnp.max(x, axis=axis, keepdims=True) - low
    step = jnp.where(span > 0, span, 1.0) / (2**bits - 1)
    places = jnp.floor((x - low) / step + jax.random.uniform(key, x.shape, x.dtype))
    return low + jnp.clip(places, 0, 2**bits - 1) * step
