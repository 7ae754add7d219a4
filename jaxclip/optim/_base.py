"""What the transformations of this package share: one state convention, norms, safe scaling.

**The state convention.** Every transformation's state is a ``NamedTuple`` of arrays which has, beside
what the rule itself needs, these four fields, so that anything can be logged without a second pass
over the gradients (:func:`jaxclip.optim.monitor` collects them):

==================== ==============================================================================
``norm``             What the rule looked at in the last step: a norm (or largest absolute value).
``threshold``        The largest such norm which the rule let out in that step.
``clipped``          bool: did the rule act on the last step? ``not norm <= threshold`` for clippers.
``nonfinite_count``  int32: steps whose update became zero because ``norm`` was NaN or infinite.
==================== ==============================================================================

Global rules keep scalars; per-tensor rules keep one vector ``[num_tensors]`` a field, in the order
of ``jax.tree.leaves(updates)`` (:func:`tensor_names` gives the paths). Vectors rather than trees of
scalars: a few arrays to dispatch, checkpoint and log instead of several for each tensor, and no
state leaf that a sharding rule could take for a parameter.

**Dtypes.** Statistics are float32 whatever the dtype of parameters and gradients, float64 if the
parameters hold a float64 tensor. A state's dtypes never change after ``init``.

**Non-finite input.** Where the norm that a rule looks at is NaN or infinite, statistics stay as they
were, the update is zero (for the tensor or the tree), ``clipped`` is true and ``nonfinite_count``
goes up; ``norm`` records what was seen.

**Hyperparameters.** A float hyperparameter may be a number, an array (traced or not) or a schedule, a
function of the number of updates seen before this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Hyperparameter = float | jax.Array | Callable[[Any], Any]

REPORTED_FIELDS = ("norm", "threshold", "clipped", "nonfinite_count")

# Sums of squares of this still fit float32: statistics that hold such sums are fed at most this.
LARGEST_SQUARABLE = 1e17


def flatten(tree: Any) -> tuple[list[jax.Array], Any]:
    """Leaves of a tree as arrays, and its structure; ``None`` and ``MaskedNode`` are no leaves."""
    leaves, treedef = jax.tree.flatten(tree)
    return [jnp.asarray(leaf) for leaf in leaves], treedef


def tensor_names(tree: Any) -> list[str]:
    """Paths of the tensors of a tree, in the order in which per-tensor states hold them.

    Args:
      tree: parameters (or updates); for a transformation within ``optax.masked`` the masked tree.

    Returns:
      One string a tensor, such as ``"image/blocks_0/mlp/up/kernel"``.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def statistics_dtype(tree: Any) -> Any:
    """float64 if the tree holds a float64 (or complex128) tensor, else float32."""
    wide = any(
        jnp.asarray(leaf).dtype in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(tree)
    )
    return jnp.float64 if wide else jnp.float32


def initial_report(shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
    """The four fields of the convention before the first step: ``()`` or ``(num_tensors,)``."""
    return {
        "norm": jnp.zeros(shape, dtype),
        "threshold": jnp.zeros(shape, dtype),
        "clipped": jnp.zeros(shape, jnp.bool_),
        "nonfinite_count": jnp.zeros(shape, jnp.int32),
    }


def hyperparameter(value: Hyperparameter, count: Any, dtype: Any) -> jax.Array:
    """Value of a hyperparameter at a step.

    Args:
      value: a number, an array or a schedule.
      count: number of updates before this one (0 in the first), given to a schedule.
      dtype: of the result.
    """
    return jnp.asarray(value(count) if callable(value) else value, dtype)


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    exclusive: bool = False,
) -> None:
    """Refuse a hyperparameter outside its range, if it is a plain number (traced ones pass).

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument; arrays and schedules are not looked at.
      low: smallest value allowed (with ``exclusive`` not itself allowed).
      high: largest value allowed (always allowed itself).
      exclusive: whether ``low`` itself is refused.

    Raises:
      TypeError: the value is neither number, array nor schedule.
      ValueError: the value is out of range (or NaN).
    """
    if isinstance(value, jax.Array) or callable(value) or hasattr(value, "aval"):
        return
    if isinstance(value, (bool, str, bytes)) or not isinstance(
        value, (int, float, np.number, np.ndarray)
    ):
        raise TypeError(f"{name}={value!r} must be a number, an array or a schedule")
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"{name} must be a scalar, got an array of shape {value.shape}")
    number = float(value)
    too_low = low is not None and not (number > low if exclusive else number >= low)
    too_high = high is not None and not number <= high
    if too_low or too_high or number != number:
        lower = "" if low is None else f"{'>' if exclusive else '>='} {low}"
        upper = "" if high is None else f"<= {high}"
        raise ValueError(f"{name}={value} must be {' and '.join(filter(None, (lower, upper)))}")


def square_sum(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Sum of squared absolute values of one tensor, computed in ``dtype``."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return square_sum(leaf.real, dtype) + square_sum(leaf.imag, dtype)
    return jnp.sum(jnp.square(leaf.astype(dtype)))


def tensor_norms(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """L2 norm of each tensor, one reduction a tensor, as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    return jnp.sqrt(jnp.stack([square_sum(leaf, dtype) for leaf in leaves]))


def tensor_maxima(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Largest absolute value of each tensor (0 for one without elements), as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    return jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0).astype(dtype) for leaf in leaves])


def tensor_norms_and_maxima(leaves: Sequence[jax.Array], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """L2 norm and largest absolute value of each tensor from one read, both ``[num_tensors]``."""
    return tensor_norms(leaves, dtype), tensor_maxima(leaves, dtype)


def combine_norms(norms: jax.Array) -> jax.Array:
    """L2 norm of a vector of norms; neither over- nor underflows before its result does."""
    largest = jnp.max(norms, initial=0.0)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe)))


def global_norm(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """L2 norm of all tensors together, a scalar."""
    return combine_norms(tensor_norms(leaves, dtype))


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: float) -> jax.Array:
    """``numerator / denominator``, and ``otherwise`` where the denominator is zero."""
    nonzero = denominator != 0
    return jnp.where(nonzero, numerator / jnp.where(nonzero, denominator, 1), otherwise)


def rescale(leaf: jax.Array, factor: jax.Array, keep: jax.Array) -> jax.Array:
    """``factor * leaf`` in the factor's precision and the leaf's dtype; zero unless ``keep``.

    Args:
      leaf: tensor of any shape and dtype.
      factor: scalar, of the statistics' dtype.
      keep: bool scalar. A multiplication by zero would not do: NaN times zero is NaN.
    """
    return jnp.where(keep, leaf * factor, 0).astype(leaf.dtype)


def increment_where(count: jax.Array, condition: jax.Array) -> jax.Array:
    """Counter plus one where the condition holds; stops at the dtype's largest value."""
    return jnp.where(condition, optax.safe_increment(count), count)
