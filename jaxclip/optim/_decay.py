"""Decoupled weight decay: which tensors have it, and how it is added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base

# A tree of bools (or a prefix of one), or a function from parameters to it.
Mask = Any | Callable[[Any], Any] | None


def add_decay(update: jax.Array, rate: jax.Array, param: jax.Array | None) -> jax.Array:
    """The update with its weight decay, if there is any.

    Args:
      update: in the statistics' dtype.
      rate: weight decay.
      param: the parameter, ``None`` for one that does not decay.
    """
    return update if param is None else update + rate * param.astype(update.dtype)


def decaying(
    weight_decay: _base.Hyperparameter, mask: Mask, params: Any, number: int
) -> list[jax.Array | None]:
    """The parameters that decay, ``None`` where there is nothing to add.

    Args:
      weight_decay: a hyperparameter.
      mask: which tensors decay; ``None`` for all.
      params: may be ``None`` if the decay is the number zero.
      number: of tensors.

    Raises:
      ValueError: there is weight decay, but there are no parameters.
    """
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return [None] * number
    if params is None:
        raise ValueError("weight decay needs the parameters: call `update(grads, state, params)`")
    found, _ = _base.flatten(params, number)
    flags = _decay_flags(mask, params, number)
    # Whole numbers are no weights (a counter, say), and a small step would round them down.
    return [
        tensor if flag and jnp.issubdtype(tensor.dtype, jnp.floating) else None
        for tensor, flag in zip(found, flags, strict=True)
    ]


def _decay_flags(mask: Mask, params: Any, number: int) -> list[bool]:
    """Whether each tensor decays."""
    if mask is None:
        return [True] * number
    prefix = mask(params) if callable(mask) else mask

    def spread(flag: Any, subtree: Any) -> Any:
        # A name of a tensor, say, is true, and all would decay.
        is_flag = isinstance(flag, (bool, np.bool_)) or getattr(flag, "dtype", None) == np.bool_
        if not is_flag and not (isinstance(flag, int) and flag in (0, 1)):
            raise TypeError(
                f"mask holds {flag!r}; it is a tree of True and False like the parameters, or a "
                "function from parameters to one"
            )
        return jax.tree.map(lambda _: bool(flag), subtree)

    try:
        return jax.tree.leaves(jax.tree.map(spread, prefix, params))
    except ValueError as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"mask and parameters are of different structures: {first}") from error
