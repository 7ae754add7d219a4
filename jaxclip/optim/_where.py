"""A choice between values that is one operation of the program.

``jnp.where`` is a function call in what JAX hands to XLA, with a computation of its own for every
use that XLA has to put in place: with some hundred tensors, a tenth of what is compiled.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Value = jax.Array | float


def where(condition: jax.Array, yes: Value, no: Value) -> jax.Array:
    """As ``jnp.where``, for arrays of the result's shape and plain numbers.

    Args:
      condition: bool, of that shape or a scalar.
      yes: taken where it holds; an array, or a number.
      no: taken elsewhere. One of the two at least is an array.

    Returns:
      An array of the arrays' dtype.
    """
    like = yes if isinstance(yes, jax.Array) else no
    fits = all(_fits(value, like) for value in (yes, no))
    if not fits or jnp.shape(condition) not in ((), jnp.shape(like)):
        return jnp.where(condition, yes, no)
    return lax.select(condition, _full(yes, like), _full(no, like))


def _fits(value: Any, like: Any) -> bool:
    """Whether a value is a number, or an array of a type."""
    if not isinstance(value, jax.Array):
        return isinstance(value, (int, float))
    return (value.shape, value.dtype, value.weak_type) == (like.shape, like.dtype, like.weak_type)


def _full(value: Any, like: Any) -> jax.Array:
    """The array, or an array full of the number."""
    return value if isinstance(value, jax.Array) else lax.full_like(like, value)
