"""What the losses have in common."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]


def as_float(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """At least float32: half-precision embeddings would halve the digits of the logits."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def unit(x: jax.Array) -> jax.Array:
    """Scale rows to unit length in float32; a zero row stays zero."""
    x = jnp.asarray(x, jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def matmul(a: jax.Array, b: jax.Array, precision: str) -> jax.Array:
    """Matrix product at ``"default"``, ``"high"`` or ``"highest"`` precision.

    An accelerator's default rounds the factors of a float32 product to bfloat16 or TF32: with a
    logit scale of 100 that moves a logit by up to half a unit. The gradient's products inherit the
    precision.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision(precision))
