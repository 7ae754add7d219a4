"""Hard negative captions as objectives see them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.objectives._base import Outputs

# Embeddings [B, M, D] and token ids [B, M, L] of the batch's field of that key.
KEY = "negatives/text"
NEEDS = frozenset({KEY, f"{KEY}_input"})


def valid(outputs: Outputs) -> jax.Array:
    """bool[B, M]: which negatives there are. One that could not be made is padding only."""
    return jnp.any(outputs[f"{KEY}_input"] != 0, axis=-1)


def share(valid: jax.Array) -> jax.Array:
    """float32[]: of the negatives that were asked for, how many there are; a metric."""
    return jnp.sum(valid, dtype=jnp.float32) / max(valid.size, 1)
