"""What the transformations of this package share: one state convention, norms, safe scaling.

**The state convention.** Every transformation's state is a ``NamedTuple`` of arrays which has,
beside what the rule itself needs, ``count`` and these four fields, so that anything can be logged
without a second pass over the gradients (:func:`jaxclip.optim.read_metrics` collects them):

==================== =============================================================================
``norm``             What the rule looked at in the last step: a norm, or a largest absolute value.
``threshold``        The largest such norm which the rule let out in that step.
``clipped``          bool: did the rule act in that step? For clippers ``not norm <= threshold``.
``nonfinite_count``  int32: steps whose update became zero because ``norm`` was NaN or infinite.
==================== =============================================================================

``count`` is the number of calls of ``update``, those with NaN included: a rule that has seen k
finite norms has ``k = count - nonfinite_count``.

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
a function of the number of updates before this one. A number of updates may not be a schedule.

**Differentiation.** Statistics, thresholds and factors of clippers are constants to ``jax.grad``:
what is left is the derivative of factor times gradient. So are those of the clips within
``spam``, ``stable_spam`` and ``clip_radagrad_d``; ``stable_adamw`` and ``acclip`` have their whole
derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim._arguments import Hyperparameter as Hyperparameter
from jaxclip.optim._arguments import check_flag as check_flag
from jaxclip.optim._arguments import check_inner as check_inner
from jaxclip.optim._arguments import check_number as check_number
from jaxclip.optim._arguments import integer as integer
from jaxclip.optim._arguments import is_real as is_real
from jaxclip.optim._arguments import static_integer as static_integer
from jaxclip.optim._arguments import static_number as static_number
from jaxclip.optim._dtypes import dtype_of as dtype_of
from jaxclip.optim._dtypes import own_promotion as own_promotion
from jaxclip.optim._dtypes import wide_dtype as wide_dtype
from jaxclip.optim._dtypes import widened as widened
from jaxclip.optim._norms import combine_norms as combine_norms
from jaxclip.optim._norms import global_norm as global_norm
from jaxclip.optim._norms import max_and_all as max_and_all
from jaxclip.optim._norms import max_and_flag as max_and_flag
from jaxclip.optim._norms import maxima_and_finite as maxima_and_finite
from jaxclip.optim._norms import norms_and_total as norms_and_total
from jaxclip.optim._norms import sum_or_nan as sum_or_nan
from jaxclip.optim._norms import tensor_maxima as tensor_maxima
from jaxclip.optim._norms import tensor_norms as tensor_norms
from jaxclip.optim._norms import zero_or_nan as zero_or_nan
from jaxclip.optim._unpack import side_by_side as side_by_side
from jaxclip.optim._unpack import unpack as unpack
from jaxclip.optim._unpack import unpack_columns as unpack_columns
from jaxclip.optim._where import where as where

REPORTED_FIELDS = ("norm", "threshold", "clipped", "nonfinite_count")

# Sums of squares of this still fit float32: statistics that hold such sums are fed at most this.
LARGEST_SQUARABLE = 1e17


def flatten(tree: Any, expected: int | None = None) -> tuple[list[jax.Array], Any]:
    """Leaves of a tree as arrays, and its structure; ``None`` and ``MaskedNode`` are no leaves.

    Args:
      tree: of updates.
      expected: number of tensors which the state was made for, if it is one for each.

    Raises:
      TypeError: a tensor is no gradient, as it is of a dtype that can't be computed with.
      ValueError: the number of tensors is not the expected one.
    """
    leaves, treedef = jax.tree.flatten(tree)
    for leaf in leaves:
        if getattr(leaf, "dtype", None) in (jax.dtypes.float0, np.bool_):
            _refuse_dtype(tree)
    if expected is not None and len(leaves) != expected:
        raise ValueError(
            f"updates hold {len(leaves)} tensors, but the state was initialised for {expected}; "
            "give `update` a tree of the structure that `init` got (hide tensors from both with "
            "optax.masked)"
        )
    return [jnp.asarray(leaf) for leaf in leaves], treedef


def _refuse_dtype(tree: Any) -> None:
    """Say which tensor is no gradient: float0 is what integers get, of ``allow_int=True``."""
    for path, leaf in named_leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype in (jax.dtypes.float0, np.bool_):
            name = "float0" if dtype == jax.dtypes.float0 else dtype
            raise TypeError(
                f"updates hold {path or 'a tensor'} of dtype {name}, which is no gradient; keep it "
                "out of the parameters, or hide it with optax.masked"
            )


def matching(treedef: Any, shapes: Sequence[tuple[int, ...]] | None, tree: Any) -> list[Any]:
    """The tensors of a part of the state, one for each update.

    Args:
      treedef: structure of the updates.
      shapes: of the updates; ``None`` to look at the structure alone.
      tree: the part of the state, such as the first moment.

    Raises:
      ValueError: another structure, or other shapes: the state was made for other parameters.
    """
    way = "; make a new state by `init`, or restore the one of these parameters"
    try:
        found = treedef.flatten_up_to(tree)
    except ValueError as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"updates and state are of different structures: {first}{way}") from error
    for i, shape in enumerate(shapes or ()):
        leaf = found[i]
        if leaf is not None and jnp.shape(leaf) != shape:
            path = tensor_names(treedef.unflatten(found))[i]
            raise ValueError(
                f"updates hold {path or 'a tensor'} of shape {shape}, for which the state has "
                f"shape {leaf.shape}{way}"
            )
    return found


def tensors_like(treedef: Any, tree: Any) -> list[Any]:
    """The parameters that belong to a tree of updates.

    Args:
      treedef: structure of the updates.
      tree: the parameters.

    Raises:
      ValueError: another structure, such as where an update is None.
    """
    try:
        return list(treedef.flatten_up_to(tree))
    except ValueError as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"updates and parameters are of different structures: {first}; give `update` trees of "
            "one structure"
        ) from error


def check_shapes_like(params: Any, leaves: Sequence[jax.Array]) -> None:
    """Refuse parameters of other shapes than their gradients: weight decay would broadcast.

    Raises:
      ValueError: names one.
    """
    named = [] if params is None else named_leaves(params)
    if len(named) != len(leaves):  # which update_dtypes judges
        return
    for (path, tensor), leaf in zip(named, leaves, strict=True):
        if jnp.shape(tensor) != leaf.shape:
            raise ValueError(
                f"parameters hold {path or 'a tensor'} of shape {jnp.shape(tensor)}, whose update "
                f"has shape {leaf.shape}; give `update` the gradients of these parameters"
            )


def tensor_names(tree: Any) -> list[str]:
    """Paths of the tensors of a tree, in the order in which per-tensor states hold them.

    Args:
      tree: parameters (or updates); for a transformation within ``optax.masked`` the masked tree.

    Returns:
      One string a tensor, such as ``"image/blocks_0/mlp/up/kernel"``.
    """
    return [path for path, _ in named_leaves(tree)]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Path and value of every tensor, in the order of ``jax.tree.leaves``.

    A box around an array (an NNX ``Variable``, a Linen ``Partitioned``) is no part of the path:
    trainers put it on or take it off between ``init`` and ``update``.
    """
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_box)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, node in nodes
        for leaf in jax.tree.leaves(node)
    ]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """A tree of ``function(path, leaf)``; ``None`` and ``MaskedNode`` are no leaves."""
    values = [function(path, leaf) for path, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def _is_box(node: Any) -> bool:
    """Whether a node is one of flax's boxes. By name, since flax is not imported here."""
    return any(
        parent.__module__.startswith("flax.") and parent.__name__ in ("Variable", "AxisMetadata")
        for parent in type(node).__mro__
    )


def statistics_dtype(tree: Any) -> Any:
    """float64 if the tree holds a float64 (or complex128) tensor, else float32."""
    wide = any(dtype_of(leaf) in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(tree))
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
    found = value(count) if callable(value) else value
    if not is_real(found):
        raise TypeError(f"a hyperparameter, or the value of a schedule, is {found!r}: no number")
    if jnp.ndim(found):
        # Of as many elements as there are tensors it would be taken for one number each.
        raise TypeError(
            f"a hyperparameter, or the value of a schedule, has shape {jnp.shape(found)}: "
            "it must be a scalar"
        )
    return jnp.asarray(found, dtype)


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


def safe_divide(numerator: jax.Array, denominator: jax.Array, otherwise: float) -> jax.Array:
    """``numerator / denominator``, broadcast, and ``otherwise`` where the denominator is zero."""
    nonzero = denominator != 0
    return where(nonzero, numerator / where(nonzero, denominator, 1.0), otherwise)


def rescale(leaf: jax.Array, factor: jax.Array, keep: jax.Array) -> jax.Array:
    """``factor * leaf`` in the factor's precision and the leaf's dtype; zero unless ``keep``.

    Args:
      leaf: tensor of any shape and dtype.
      factor: scalar, of the statistics' dtype.
      keep: bool scalar. A multiplication by zero would not do: NaN times zero is NaN.
    """
    scaled = widened(leaf, factor.dtype) * factor
    return jax.lax.select(keep, scaled, jax.lax.full_like(scaled, 0)).astype(leaf.dtype)


def zeros_like_wide(leaf: Any) -> jax.Array:
    """Zeros like a parameter, at least float32: half precision would lose small steps."""
    return jnp.zeros_like(leaf, dtype=wide_dtype(dtype_of(leaf)))


def increment_where(count: jax.Array, condition: jax.Array) -> jax.Array:
    """Counter plus one where the condition holds; stops at the dtype's largest value."""
    return jnp.where(condition, optax.safe_increment(count), count)
