"""What the wrappers that skip whole steps share: running the wrapped one, and taking it back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.optim._where import where


def extra_arguments(
    names: Sequence[str] | None, value: Any, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the extra arguments of an update, those that the wrapped transformation is to get.

    Args:
      names: of those that it takes; ``None`` if it takes any.
      value: the loss, ``None`` if it was not given.
      extra: the others.
    """
    given = dict(extra) if value is None else {"value": value, **extra}
    return given if names is None else {name: given[name] for name in names if name in given}


def check_extra_args(name: str, names: Any) -> None:
    """Refuse names of extra arguments that are no list of strings.

    Raises:
      TypeError: such as a string alone, whose letters would be the names.
    """
    given = () if names is None else names
    if isinstance(given, str) or not isinstance(given, Collection):
        raise TypeError(f"{name}.extra_args={names!r} must be a list of names, or None for all")
    if not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name}.extra_args={names!r} must be a list of names, or None for all")


def undo(skip: jax.Array, updates: Any, new_state: Any, old_state: Any) -> tuple[Any, Any]:
    """Updates and state of the wrapped transformation, or zeros and the old state on a skip.

    By a choice of values and not of branches, which XLA joins with the work at hand: no array is
    copied, and ``vmap`` changes nothing.

    Args:
      skip: bool scalar; it is looked at in every tensor's kernel, so it should not be computed
        there: see :func:`jaxclip.optim._together.together`.
      updates: what the wrapped transformation gave.
      new_state: its state after that.
      old_state: its state before.
    """

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        chosen = where(skip, old, new)
        # Some of optax's states take the dtype of what they are fed; a loop needs one dtype.
        return chosen if chosen.dtype == jnp.asarray(old).dtype else chosen.astype(old.dtype)

    kept = jax.tree.map(lambda leaf: where(skip, 0.0, leaf).astype(leaf.dtype), updates)
    return kept, jax.tree.map(choose, new_state, old_state)
