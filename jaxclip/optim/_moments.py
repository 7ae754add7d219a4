"""What the optimizers of this package share: moments and their directions.

**Clocks.** A tensor whose gradient is not finite is skipped: its moments stay, its update (weight
decay included) is zero and its clock stands still, so that bias corrections, warm-ups and resets go
on as if the step had not been. A tensor's clock is ``count - nonfinite_count``.

**Range.** Gradient elements beyond ±1e17 count as ±1e17, for their squares to stay in float32.

**Dtypes.** Moments are float32 (float64 for float64 parameters); the first may take a ``mu_dtype``.
The second may not: with 8 bits of mantissa, ``v + 0.001 * (g² - v)`` is ``v``.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base, _decay, _dtypes
from jaxclip.optim._stacks import ENOUGH, ENOUGH_BY_ONE_KERNEL, LARGEST, LEAST, Stacks
from jaxclip.optim._together import together


def zeros(leaf: Any, dtype: Any = None, shape: tuple[int, ...] | None = None) -> jax.Array:
    """A moment of a parameter before the first step.

    Args:
      leaf: the parameter.
      dtype: of the moment; default the parameter's, but at least float32.
      shape: of the moment; default the parameter's.

    """
    dtype = _base.wide_dtype(_base.dtype_of(leaf)) if dtype is None else dtype
    return jnp.zeros_like(leaf, dtype=dtype, shape=shape)


def squarable(leaf: jax.Array, dtype: Any) -> jax.Array:
    """A gradient in the statistics' precision, infinities and the like cut to ±1e17."""
    bound = _base.LARGEST_SQUARABLE
    wide = leaf.astype(dtype)
    return jax.lax.clamp(jnp.asarray(-bound, dtype), wide, jnp.asarray(bound, dtype))


def direction(mu: jax.Array, nu: jax.Array, eps: jax.Array, positive: bool = False) -> jax.Array:
    """Adam's ``mu / (sqrt(nu) + eps)``; zero, not NaN, without a gradient so far and eps = 0.

    Args:
      mu: first moment.
      nu: second moment.
      eps: ε.
      positive: whether ε is known to be, see :func:`known_positive`: less to compile.
    """
    root = square_root(nu) + eps
    return mu / root if positive else _base.safe_divide(mu, root, 0.0)


@jax.jit  # traced once a shape
def square_root(values: jax.Array) -> jax.Array:
    """The root, with derivative 0, not infinite, at 0: of an element without a gradient so far."""
    return _square_root(values)


@jax.custom_jvp
def _square_root(values: jax.Array) -> jax.Array:
    return jnp.sqrt(values)


@_square_root.defjvp
def _square_root_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    root = _square_root(*primals)
    return root, tangents[0] * _base.safe_divide(jnp.full_like(root, 0.5), root, 0.0)


def known_positive(eps: Any) -> bool:
    """Whether ε is a number whose square, too, is above zero in float32."""
    return isinstance(eps, (int, float)) and float(np.float32(eps) ** 2) > 1e-37


def aside(*arrays: jax.Array) -> Any:
    """The same arrays, for work of its own that shares a part with other work on them.

    XLA would do the shared part once and write it to memory, an array as large as a moment. To do
    it twice is faster, and takes no memory. What is computed from the results is also computed
    after all that the arguments are computed from.

    Returns:
      A tuple, or the array if there is but one.
    """
    results = jax.lax.optimization_barrier(arrays)
    return results if len(results) > 1 else results[0]


def average(old: jax.Array, value: jax.Array, weight: jax.Array) -> jax.Array:
    """A moment after one more value, in the value's precision: ``(1 - weight) old + weight value``.

    As a step from the old moment, which loses no digits where the weight is small.
    """
    old = old.astype(value.dtype)
    return old + weight * (value - old)


def store(keep: jax.Array, new: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A moment to store, and to compute the update from.

    They are the same array wherever the dtypes allow, so that XLA computes it once, and in place.

    Args:
      keep: scalar bool; without it the moment stays as it was.
      new: the new moment, in the statistics' dtype.
      old: the old moment, in its own dtype.

    Returns:
      The moment in the old one's dtype, and in the statistics'.
    """
    stored = _base.where(keep, new.astype(old.dtype), old)
    return stored, stored if old.dtype == new.dtype else new


def stored(new: jax.Array, old: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As :func:`store`, of a moment that is the old one already if nothing shall change."""
    return new.astype(old.dtype), new


def update_dtypes(params: Any, leaves: Sequence[jax.Array]) -> list[Any]:
    """Dtype of each tensor's update: as optax has it, the wider of parameter and gradient.

    A float32 parameter with bfloat16 gradients gets float32 updates, or weight decay and learning
    rate would be rounded to bfloat16. Without parameters the gradients decide alone.

    Args:
      params: may be ``None``.
      leaves: of the updates.
    """
    if params is None:
        return [leaf.dtype for leaf in leaves]
    tensors, _ = _base.flatten(params)
    if len(tensors) != len(leaves):
        raise ValueError(
            f"updates hold {len(leaves)} tensors, but the parameters {len(tensors)}; give `update` "
            "trees of one structure"
        )
    pairs = zip(tensors, leaves, strict=True)
    return [_dtypes.wider(tensor.dtype, leaf.dtype) for tensor, leaf in pairs]


def finish(keep: jax.Array, update: jax.Array, dtype: Any) -> jax.Array:
    """The update in a dtype of :func:`update_dtypes`, or zero unless ``keep``."""
    return _base.where(keep, update, 0.0).astype(dtype)


class Step(NamedTuple):
    """One tensor's update, its new moments, and the numbers that its report is made of.

    Attributes:
      update: in the dtype of :func:`update_dtypes`.
      mu: the first moment.
      nu: the second moment.
      seen: scalars that the report is made of, of the statistics' dtype.
    """

    update: jax.Array
    mu: jax.Array
    nu: jax.Array
    seen: tuple[jax.Array, ...] = ()


class Tensors(NamedTuple):
    """What an update works on, tensor by tensor; lists of equal length.

    Attributes:
      leaves: gradients.
      mu: first moments.
      nu: second moments.
      params: parameters that decay, ``None`` where there is nothing to add.
      dtypes: of the updates.
      treedef: structure of the gradients.
    """

    leaves: list[jax.Array]
    mu: list[jax.Array]
    nu: list[jax.Array]
    params: list[jax.Array | None]
    dtypes: list[Any]
    treedef: Any


# Elements of a tensor that fills a processor's cache of its own: 2 MB in float32.
_LARGE = 2**19


def tensors(
    updates: Any,
    state: Any,
    params: Any,
    weight_decay: _base.Hyperparameter,
    mask: _decay.Mask,
    sampled: bool = False,
) -> Tensors:
    """The tensors of an update, for a state with ``mu``, ``nu`` and a report for each tensor.

    Args:
      updates: gradients.
      state: of the optimizer.
      params: may be ``None`` if nothing decays.
      weight_decay: a hyperparameter.
      mask: which tensors decay; ``None`` for all.
      sampled: whether the moments are of a part of each tensor.

    Raises:
      ValueError: the gradients are not of the state's structure and shapes; there is weight decay,
        but there are no parameters.
    """
    leaves, treedef = _base.flatten(updates, state.norm.size)
    _base.check_shapes_like(params, leaves)

    def moments(tree: Any) -> list[jax.Array]:
        shapes = None if sampled else [leaf.shape for leaf in leaves]
        return _base.matching(treedef, shapes, tree)

    return Tensors(
        leaves,
        moments(state.mu),
        moments(state.nu),
        _decay.decaying(weight_decay, mask, params, len(leaves)),
        update_dtypes(params, leaves),
        treedef,
    )


def report(
    state: Any, seen: Any, judge: Callable[[Any], tuple[jax.Array, jax.Array]]
) -> dict[str, jax.Array]:
    """The four fields of the convention after a step, from one kernel.

    Args:
      state: the old state.
      seen: a tree of ``[num_tensors]``.
      judge: from that to the norm and the largest one allowed, element by element as in
        :func:`jaxclip.optim._together.together`.
    """

    def settle(inputs: tuple[Any, dict[str, jax.Array]]) -> dict[str, jax.Array]:
        seen, before = inputs
        norm, limit = judge(seen)
        finite = jnp.isfinite(norm)
        count = before["nonfinite_count"]
        return {
            "norm": norm,
            "threshold": jnp.where(finite, limit, before["threshold"]),
            "clipped": ~(norm <= limit),
            "nonfinite_count": _base.increment_where(count, ~finite),
        }

    before = {"threshold": state.threshold, "nonfinite_count": state.nonfinite_count}
    return together(settle, (seen, before), state.norm.shape)


def each(
    step: Callable[..., Step], found: Tensors, state: Any, numbers: Sequence[jax.Array] = ()
) -> tuple[Any, dict[str, Any], list[jax.Array]]:
    """The same step for every tensor; for all small ones of a type at once.

    Args:
      step: of gradient, moments, parameter (or ``None``) and the tensor's numbers as a vector, if
        there are any; its argument ``dtype`` is the update's.
      found: the tensors.
      state: the old state.
      numbers: vectors ``[num_tensors]`` of one dtype.

    Returns:
      The tree of updates; ``mu`` and ``nu`` by name, as trees; and what the steps have seen, as
      ``[num_tensors]`` each (the old norm, twice, if there are no tensors).
    """
    if not found.leaves:
        return found.treedef.unflatten([]), {"mu": state.mu, "nu": state.nu}, [state.norm] * 2
    tensors, seen = each_in_lists(step, found, numbers)
    update, mu, nu = map(found.treedef.unflatten, tensors)
    return update, {"mu": mu, "nu": nu}, seen


def each_in_lists(
    step: Callable[..., Step], found: Tensors, numbers: Sequence[jax.Array]
) -> tuple[list[list[jax.Array]], list[jax.Array]]:
    """As :func:`each`, for at least one tensor.

    Returns:
      Updates, first and second moments, as lists; and what the steps have seen, ``[num_tensors]``.
    """
    stacks = stacks_of(found)
    steps = stacks.each(
        step,
        *map(stacks.arrays, _columns(found)),
        numbers=stacks.numbers(numbers) if numbers else None,
        static={"dtype": found.dtypes},
    )
    *results, seen = zip(*steps, strict=True)
    return stacks.tensors(results), list(stacks.matrix(list(zip(*seen, strict=True))))


def stacks_of(found: Tensors, *, by_one_kernel: bool = False) -> Stacks:
    """How the tensors of an optimizer's step are put together: small ones of which all is alike.

    Args:
      found: the tensors.
      by_one_kernel: whether the step of small tensors is one kernel.
    """
    kinds = [
        (*(None if part is None else jax.typeof(part) for part in parts), dtype)
        for *parts, dtype in zip(*_columns(found), found.dtypes, strict=True)
    ]
    enough = min(ENOUGH, ENOUGH_BY_ONE_KERNEL) if by_one_kernel else ENOUGH
    stacks = Stacks(found.leaves, kinds, least=enough)
    if len(stacks) < len(found.leaves):
        # What takes the stacks apart is there then, and others are cheap.
        stacks = Stacks(found.leaves, kinds, least=min(enough, LEAST))
    return stacks


def _columns(found: Tensors) -> tuple[list[Any], ...]:
    """Gradients, moments and parameters."""
    return found.leaves, found.mu, found.nu, found.params


def parts(found: Tensors) -> list[tuple[np.ndarray, Tensors]]:
    """All but the largest tensors together, then each of those; with their places.

    For rules that look at a tensor more than once with work on all tensors in between. A large
    tensor would have left the processor's cache by then; but every part is work of its own to
    compile.
    """
    sizes = np.asarray([leaf.size for leaf in found.leaves])
    (most,), (large,) = np.nonzero(sizes < _LARGE), np.nonzero(sizes >= _LARGE)
    names = ("leaves", "mu", "nu", "params", "dtypes")

    def part(at: np.ndarray) -> Tensors:
        return found._replace(**{n: [getattr(found, n)[i] for i in at] for n in names})

    # In their stacks' order, which no vector has then to be brought into.
    if most.size:
        most = most[stacks_of(part(most), by_one_kernel=True).order]
    places = [at for at in (most, *large.reshape(-1, 1)) if at.size]
    return [(at, part(at)) for at in places]


def small_as_vectors(found: Tensors) -> Tensors:
    """Small tensors as vectors where many have so many elements: biases of heads among others.

    So they are of one type, and put together. Few stay as they are, for devices may hold parts.
    """
    sizes = collections.Counter(leaf.size for leaf in found.leaves)

    def flat(tensor: Any) -> Any:
        many = tensor is not None and sizes[tensor.size] >= ENOUGH_BY_ONE_KERNEL
        if not many or tensor.ndim < 2 or tensor.size > LARGEST:
            return tensor
        sharding = getattr(jax.typeof(tensor), "sharding", None)
        if sharding is not None and any(axis is not None for axis in sharding.spec):
            return tensor
        return tensor.reshape(-1)

    names = ("leaves", "mu", "nu", "params")
    return found._replace(**{name: list(map(flat, getattr(found, name))) for name in names})


def check(name: str, *, eps: Any, weight_decay: Any, mu_dtype: Any = None, **decays: Any) -> None:
    """Refuse arguments of an Adam-like optimizer that make no sense.

    Args:
      name: of the transformation, for the message.
      eps: added to a root.
      weight_decay: decoupled.
      mu_dtype: of the first moment, ``None`` for the default.
      **decays: of running averages, by the names of the arguments.

    Raises:
      ValueError: a number out of its range.
      TypeError: no number at all, or no dtype.
    """
    for argument, value in decays.items():
        _base.check_number(f"{name}.{argument}", value, 0, below=1)
    _base.check_number(f"{name}.eps", eps, 0, below=math.inf)
    _base.check_number(f"{name}.weight_decay", weight_decay, 0, below=math.inf)
    try:
        floating = mu_dtype is None or jnp.issubdtype(jnp.dtype(mu_dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise TypeError(f"{name}.mu_dtype={mu_dtype!r} must be a float dtype, such as 'bfloat16'")


def refuse_complex(name: str, tree: Any) -> None:
    """Refuse complex tensors.

    Raises:
      TypeError: the tree holds one.
    """
    for leaf in jax.tree.leaves(tree):
        dtype = _base.dtype_of(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}: complex tensors ({dtype}) have no second moment here; split them into "
                "real and imaginary parts"
            )
