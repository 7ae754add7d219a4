"""What the wrappers for bfloat16 parameters share: the inner optimizer in float32, and rounding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base
from jaxclip.optim._sample import numbered, scrambled
from jaxclip.optim._where import where

# 2**32 over the golden ratio: no small number's hash is mistaken for one of these.
_ODD = 0x9E3779B9


def is_narrow(leaf: Any) -> bool:
    """Whether a tensor is one that these wrappers are for."""
    return _base.dtype_of(leaf) == jnp.bfloat16


def widen(tree: Any) -> Any:
    """bfloat16 tensors of a tree as float32; the others as they are."""

    def of(leaf: Any) -> Any:
        if not is_narrow(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        return jnp.asarray(leaf, jnp.float32)

    return jax.tree.map(of, tree)


def round_to_nearest(value: jax.Array) -> jax.Array:
    """float32 values rounded to those of bfloat16, in float32.

    Not by a cast there and back, which XLA takes out (``xla_allow_excess_precision``).
    """
    return jax.lax.reduce_precision(value, exponent_bits=8, mantissa_bits=7)


def seeds(seed: int, count: jax.Array, number: int) -> jax.Array:
    """A seed for each tensor in each step, uint32 ``[number]``.

    Args:
      seed: not negative.
      count: int32, number of updates before this one.
      number: of tensors.
    """
    mixed = jnp.asarray(_ODD, jnp.uint32)
    for part in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, count):
        mixed = scrambled(mixed + jnp.asarray(part, jnp.uint32))
    # Not a number of the same kind, or tensors and steps could change places.
    return scrambled(scrambled(jnp.arange(number, dtype=jnp.uint32) * np.uint32(_ODD)) ^ mixed)


def round_at_random(value: jax.Array, seed: jax.Array) -> jax.Array:
    """float32 values rounded up or down to those of bfloat16, without bias; in float32.

    Sixteen random bits are added below the sixteen that bfloat16 keeps; the rest is cut off. They
    are a hash of the element's place, and not from JAX's generator: see :func:`scrambled`.

    Args:
      value: any shape; what is not finite stays as it is.
      seed: uint32, one of its own.
    """
    pattern = jax.lax.bitcast_convert_type(value, jnp.uint32)
    noise = scrambled(scrambled(numbered(value.shape)) ^ seed) & np.uint32(0xFFFF)
    cut = (pattern + noise) & np.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(cut, jnp.float32)
    return where(jnp.isfinite(value), rounded, value)
