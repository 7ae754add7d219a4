"""Dtypes: what a tensor is computed in, whatever type it and the caller's settings have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def dtype_of(leaf: Any) -> Any:
    """Dtype that JAX computes a parameter in, which may be a number, an array, or its shape."""
    return leaf.dtype if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf).dtype


def wide_dtype(dtype: Any) -> Any:
    """A dtype, but at least float32. (JAX promotes no 8-bit floats.)"""
    narrow = not jnp.issubdtype(dtype, jnp.inexact) or jnp.dtype(dtype).itemsize < 4
    return jnp.dtype(jnp.float32) if narrow else jnp.dtype(dtype)


def widened(leaf: jax.Array, dtype: Any) -> jax.Array:
    """A tensor of a type narrower than float32 in a dtype to compute in, others as they are."""
    return leaf if leaf.dtype == wide_dtype(leaf.dtype) else leaf.astype(dtype)


def wider(one: Any, other: Any) -> Any:
    """The wider of two dtypes; JAX promotes no 8-bit floats."""
    if one == other:
        return one
    wide = [d for d in (one, other) if not (d.itemsize == 1 and jnp.issubdtype(d, jnp.floating))]
    return jnp.promote_types(*wide) if len(wide) == 2 else (*wide, jnp.dtype(jnp.float32))[0]


def own_promotion(update: Callable[..., Any]) -> Callable[..., Any]:
    """An ``update`` under JAX's usual rules of promotion, whatever its caller has set.

    ``jax_numpy_dtype_promotion="strict"`` and ``jax_numpy_rank_promotion="raise"`` find slips in
    the caller's own code; here mixed dtypes and ranks are meant.
    """

    @functools.wraps(update)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return update(*args, **kwargs)

    return wrapped
