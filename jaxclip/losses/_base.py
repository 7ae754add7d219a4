"""What the losses have in common."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.shapes import check_shapes

Metrics = dict[str, jax.Array]


def as_float(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """At least float32: half-precision embeddings would halve the digits of the logits."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def as_pairs(what: str, **arrays: Any) -> tuple[jax.Array, ...]:
    """:func:`as_float` of arrays [B, D] that are compared row by row.

    Args:
      what: the function, for errors.
      **arrays: by the names of its arguments; nested lists will do.

    Raises:
      TypeError: complex numbers, or none at all.
      ValueError: arrays of other shapes, or of no rows: they would broadcast.
    """
    given = {name: _as_array(what, name, array) for name, array in arrays.items()}
    check_shapes(what, **{name: (array, "B D") for name, array in given.items()})
    return as_float(*given.values())


def as_scalar(what: str, name: str, value: Any, dtype: Any) -> jax.Array:
    """A number, or an array of one element, as a scalar of a dtype.

    Raises:
      TypeError: it is no real number.
      ValueError: it has more elements: they would scale columns.
    """
    given = _as_array(what, name, value)
    if given.size != 1:
        raise ValueError(f"{what}: {name} has shape {list(given.shape)}, a scalar is wanted")
    return jnp.reshape(jnp.asarray(given, dtype), ())


def _as_array(what: str, name: str, value: Any) -> Any:
    array = value
    if not hasattr(value, "dtype"):
        # NumPy takes a list of anything, to say of what it is; traced arrays only JAX can stack.
        of_jax = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
        array = jnp.asarray(value) if of_jax else np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating) and not jnp.issubdtype(
        array.dtype, jnp.integer
    ):
        found = array.dtype if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"{what}: {name} is of {found}, where real numbers are wanted")
    return array


def check_share(what: str, name: str, value: Any, *, below_one: bool = False) -> None:
    """Refuse a share that is not in [0, 1], or [0, 1), if it is a plain number.

    Raises:
      TypeError: it is no number.
      ValueError: it is out of range.
    """
    if hasattr(value, "dtype"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what}.{name}={value!r} must be a number")
    if not (0.0 <= value < 1.0 if below_one else 0.0 <= value <= 1.0):
        raise ValueError(f"{what}.{name}={value} must be in [0, 1{')' if below_one else ']'}")


def unit(x: jax.Array) -> jax.Array:
    """Scale rows to unit length in float32; a zero row stays zero."""
    x = jnp.asarray(x, jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def matmul(a: jax.Array, b: jax.Array, precision: str) -> jax.Array:
    """Matrix product at ``"default"``, ``"high"`` or ``"highest"`` precision.

    An accelerator's default rounds the factors of a float32 product to bfloat16 or TF32: with a
    logit scale of 100 that moves a logit by up to half a unit. The gradient's products inherit the
    precision.

    Raises:
      ValueError: another precision.
    """
    try:
        known = jax.lax.Precision(precision)
    except ValueError:
        raise ValueError(f"precision={precision!r}; use 'default', 'high' or 'highest'") from None
    return jnp.matmul(a, b, precision=known)
