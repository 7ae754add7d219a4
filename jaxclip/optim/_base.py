"""What the transformations of this package share: one state convention, norms, safe scaling.

**The state convention.** Every transformation's state is a ``NamedTuple`` of arrays which has,
beside what the rule itself needs, these four fields, so that anything can be logged without a
second pass over the gradients (:func:`jaxclip.optim.monitor` collects them):

==================== =============================================================================
``norm``             What the rule looked at in the last step: a norm, or a largest absolute value.
``threshold``        The largest such norm which the rule let out in that step.
``clipped``          bool: did the rule act in that step? For clippers ``not norm <= threshold``.
``nonfinite_count``  int32: steps whose update became zero because ``norm`` was NaN or infinite.
==================== =============================================================================

Global rules keep scalars; per-tensor rules keep one vector ``[num_tensors]`` a field, in the order
of ``jax.tree.leaves(updates)`` (:func:`tensor_names` gives the paths). Vectors rather than trees of
scalars: a few arrays to dispatch, checkpoint and log instead of several for each tensor, and no
state leaf that a sharding rule could take for a parameter.

**Dtypes.** Statistics are float32 whatever the dtype of parameters and gradients, float64 if the
parameters hold a float64 tensor. A state's dtypes never change after ``init``.

**Non-finite input.** Where the norm that a rule looks at is NaN or infinite, statistics stay as
they were, the update is zero (for the tensor or the tree), ``clipped`` is true and
``nonfinite_count`` goes up; ``norm`` records what was seen and ``threshold`` keeps its last value.
A finite gradient whose square overflows float32 (1e30, say) has its true, finite norm.

**Hyperparameters.** A float hyperparameter may be a number, an array (traced or not) or a schedule,
a function of the number of updates before this one.
"""

from __future__ import annotations

import operator
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


def flatten(tree: Any, expected: int | None = None) -> tuple[list[jax.Array], Any]:
    """Leaves of a tree as arrays, and its structure; ``None`` and ``MaskedNode`` are no leaves.

    Args:
      tree: of updates.
      expected: number of tensors which the state was made for, if it is one for each.

    Raises:
      ValueError: the number of tensors is not the expected one.
    """
    leaves, treedef = jax.tree.flatten(tree)
    if expected is not None and len(leaves) != expected:
        raise ValueError(
            f"updates hold {len(leaves)} tensors, but the state was initialised for {expected}; "
            "give `update` a tree of the structure that `init` got (hide tensors from both with "
            "optax.masked)"
        )
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


def complement(value: Hyperparameter, count: Any, dtype: Any) -> jax.Array:
    """``1 - value`` of a hyperparameter at a step, exact for a number however close to one."""
    if isinstance(value, (int, float)):
        return jnp.asarray(1.0 - value, dtype)
    return 1 - hyperparameter(value, count, dtype)


def bias_correction(complement_of_decay: jax.Array, count: jax.Array) -> jax.Array:
    """``1 - decay ** count`` without the cancellation that costs float32 its digits.

    Args:
      complement_of_decay: ``1 - decay``, from :func:`complement`.
      count: number of values in the average; any shape.
    """
    exponent = count.astype(complement_of_decay.dtype) * jnp.log1p(-complement_of_decay)
    return -jnp.expm1(exponent)


def check_number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a hyperparameter outside its range, if it is a plain number (traced ones pass).

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument; arrays and schedules are not looked at.
      low: smallest value allowed.
      high: largest value allowed.
      above: value that it must exceed.
      below: value that it must not reach.

    Raises:
      TypeError: the value is neither number, array nor schedule, or an array in half precision.
      ValueError: the value is out of range (or NaN).
    """
    if isinstance(value, jax.Array) or callable(value):
        _check_precision(name, value)
        return
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.number, np.ndarray)
    ):
        raise TypeError(f"{name}={value!r} must be a number, an array or a schedule")
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"{name} must be a scalar, got an array of shape {value.shape}")
    number = float(value)
    conditions = {
        f">= {low}": low is None or number >= low,
        f"<= {high}": high is None or number <= high,
        f"> {above}": above is None or number > above,
        f"< {below}": below is None or number < below,
    }
    if number != number or not all(conditions.values()):
        wanted = " and ".join(text for text in conditions if not text.endswith("None"))
        raise ValueError(f"{name}={value} must be {wanted or 'a number'}")


def _check_precision(name: str, value: Any) -> None:
    """Refuse a hyperparameter in half precision, which makes 1.0 of 0.999.

    Raises:
      TypeError: the value is an array of a float dtype narrower than float32.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4:
        return
    raise TypeError(
        f"{name} is an array of dtype {dtype}, too coarse for a hyperparameter (0.999 is 1.0 in "
        "bfloat16); optax.inject_hyperparams casts to the parameters' dtype unless told otherwise: "
        "pass hyperparam_dtype=jnp.float32 to it"
    )


def static_integer(name: str, value: Any, low: int) -> int:
    """An argument that sets a shape, as an int.

    Raises:
      TypeError: it is no integer, or a traced one.
      ValueError: it is less than ``low``.
    """
    try:
        integer = operator.index(value)
    except (TypeError, jax.errors.JAXTypeError) as error:
        argument = name.rpartition(".")[2]
        raise TypeError(
            f"{name}={value!r} must be an integer known when tracing; within "
            f"optax.inject_hyperparams pass static_args={argument!r}"
        ) from error
    if integer < low:
        raise ValueError(f"{name}={integer} must be >= {low}")
    return integer


def static_number(name: str, value: Any, **limits: float) -> float:
    """An argument that sets a shape, as a float.

    Args:
      name: ``"transformation.argument"``, for the message.
      value: the argument.
      **limits: as for :func:`check_number`.

    Raises:
      TypeError: it is no number, or a traced one.
      ValueError: it is out of range.
    """
    try:
        number = float(value)
    except (TypeError, jax.errors.JAXTypeError) as error:
        argument = name.rpartition(".")[2]
        raise TypeError(
            f"{name}={value!r} must be a number known when tracing; within "
            f"optax.inject_hyperparams pass static_args={argument!r}"
        ) from error
    check_number(name, number, **limits)
    return number


def tensor_norms(
    leaves: Sequence[jax.Array], dtype: Any, minus: Sequence[jax.Array] | None = None
) -> jax.Array:
    """L2 norm of each tensor, one reduction a tensor, as ``[num_tensors]``.

    Args:
      leaves: tensors.
      dtype: of the result.
      minus: tensors to be subtracted first, ``None`` for none. (Given differences instead, the
        second look at norms that overflowed would have them all written to memory.)
    """

    def tensors() -> list[jax.Array]:
        if minus is None:
            return list(leaves)
        return [a.astype(b.dtype) - b for a, b in zip(leaves, minus, strict=True)]

    if not leaves:
        return jnp.zeros((0,), dtype)
    norms = jnp.sqrt(jnp.stack([_square_sum(tensor, dtype) for tensor in tensors()]))
    if norms.dtype == jnp.float64:
        return norms
    # Computed anew, with care, if float32 overflowed.
    return jax.lax.cond(
        jnp.all(jnp.isfinite(norms)),
        lambda: norms,
        lambda: jnp.stack([_scaled_norm(tensor, dtype) for tensor in tensors()]),
    )


def tensor_maxima(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Largest absolute value of each tensor (0 for one without elements), as ``[num_tensors]``."""
    if not leaves:
        return jnp.zeros((0,), dtype)
    largest = [max_or_nan(jnp.abs(leaf), jnp.isnan(leaf)) for leaf in leaves]
    return jnp.stack([value.astype(dtype) for value in largest])


def max_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Largest of a tensor's non-negative values (0 without any), NaN if any is spoilt.

    ``jnp.max`` would not do: XLA's reductions on the CPU may lose NaN.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape or a scalar.
    """
    spoilt = jnp.broadcast_to(spoilt, values.shape)
    largest, any_spoilt = jax.lax.reduce(
        (values, spoilt),
        (jnp.zeros((), values.dtype), jnp.zeros((), jnp.bool_)),
        lambda x, y: (jnp.maximum(x[0], y[0]), x[1] | y[1]),
        tuple(range(values.ndim)),
    )
    return jnp.where(any_spoilt, jnp.nan, largest)


def sum_or_nan(values: jax.Array, spoilt: jax.Array) -> jax.Array:
    """Sum of a tensor's values, NaN if any is spoilt.

    Not by a reduction with two results, as the maximum: that adds one value after the other, which
    costs float32 its digits beyond some ten thousand, and to do rows first would have devices that
    share rows exchange a number for each.

    Args:
      values: tensor of any shape.
      spoilt: bool, of the same shape.
    """
    return jnp.sum(jnp.where(spoilt, jnp.nan, values))


def _square_sum(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Sum of the squared absolute values, computed in ``dtype``."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _square_sum(leaf.real, dtype) + _square_sum(leaf.imag, dtype)
    return jnp.sum(jnp.square(leaf.astype(dtype)))


def _scaled_norm(leaf: jax.Array, dtype: Any) -> jax.Array:
    """L2 norm of a tensor with its largest element taken out, so that no square overflows."""
    magnitude = jnp.abs(leaf).astype(dtype)
    # A constant to scale by would not do: XLA pulls it out of squares, where it underflows.
    largest = jnp.max(magnitude, initial=0.0)
    safe = jnp.where(largest > 0, largest, 1.0)
    return safe * jnp.sqrt(jnp.sum(jnp.square(magnitude / safe)))


def ordered_pattern(magnitude: jax.Array) -> jax.Array:
    """Bit patterns of non-negative floats: integers in the same order, NaN above infinity.

    An integer maximum of them keeps NaN, as a float maximum does, but vectorises.
    """
    integer = jnp.dtype(f"int{8 * magnitude.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(magnitude, integer)


def combine_norms(norms: jax.Array) -> jax.Array:
    """L2 norm of a vector of norms; neither over- nor underflows before its result does."""
    largest = jnp.max(norms, initial=0.0)
    safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
    return safe * jnp.sqrt(jnp.sum(jnp.square(norms / safe)))


def global_norm(
    leaves: Sequence[jax.Array], dtype: Any, minus: Sequence[jax.Array] | None = None
) -> jax.Array:
    """L2 norm of all tensors together, a scalar; arguments as for :func:`tensor_norms`."""
    return combine_norms(tensor_norms(leaves, dtype, minus))


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


def zeros_like_wide(leaf: Any) -> jax.Array:
    """Zeros like a parameter, at least float32: half precision would lose small steps."""
    leaf = jnp.asarray(leaf)
    return jnp.zeros_like(leaf, dtype=jnp.promote_types(leaf.dtype, jnp.float32))


def increment_where(count: jax.Array, condition: jax.Array) -> jax.Array:
    """Counter plus one where the condition holds; stops at the dtype's largest value."""
    return jnp.where(condition, optax.safe_increment(count), count)
