"""What the wrappers that skip whole steps share: running the wrapped one, and taking it back."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _unpack


def extra_arguments(
    inner: optax.GradientTransformation, value: Any, extra: dict[str, Any]
) -> dict[str, Any]:
    """Of the extra arguments of an update, those that the wrapped transformation takes.

    Some take any, some none, and some (``optax.contrib.sam``) refuse all but their own.

    Args:
      inner: the wrapped transformation.
      value: the loss, ``None`` if it was not given.
      extra: the others.
    """
    given = extra if value is None else {"value": value, **extra}
    parameters = inspect.signature(inner.update).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return given
    return {name: argument for name, argument in given.items() if name in parameters}


def undo(skip: jax.Array, updates: Any, new_state: Any, old_state: Any) -> tuple[Any, Any]:
    """Updates and state of the wrapped transformation, or zeros and the old state on a skip.

    By a choice of values and not of branches, which XLA joins with the work at hand: no array is
    copied, and ``vmap`` changes nothing.

    Args:
      skip: bool scalar.
      updates: what the wrapped transformation gave.
      new_state: its state after that.
      old_state: its state before.
    """
    skip = _unpack.computed_once(skip)

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        chosen = jnp.where(skip, old, new)
        # Some of optax's states take the dtype of what they are fed; a loop needs one dtype.
        return chosen if chosen.dtype == jnp.asarray(old).dtype else chosen.astype(old.dtype)

    kept = jax.tree.map(lambda leaf: jnp.where(skip, 0, leaf).astype(leaf.dtype), updates)
    return kept, jax.tree.map(choose, new_state, old_state)
