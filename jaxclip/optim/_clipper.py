"""The skeleton of a clipper: look at the gradients, decide, note it in the state, act.

A rule gives the two middle steps. Everything that all of them owe (dtypes, non-finite input, None
gradients, the report, extra arguments, differentiation) is here once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _places
from jaxclip.optim._together import together

# From gradients and the decision's numbers to updates, and own fields that come out on the way.
Act = Callable[..., tuple[list[jax.Array], Mapping[str, Any]]]


class Decision(NamedTuple):
    """What a rule makes of one step's gradients; all arrays are scalars or ``[num_tensors]``.

    Attributes:
      norm: what it looked at.
      threshold: what it allows.
      clipped: whether it acts.
      numbers: what it needs to act; the first becomes NaN where the rule may not.
      own: new values of the state's own fields; where not finite they stay.
      finite: whether the rule may act and learn; by default whether ``norm`` is finite.
    """

    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    numbers: tuple[jax.Array, ...] = ()
    own: Mapping[str, jax.Array] = MappingProxyType({})
    finite: jax.Array | None = None


class Plan(NamedTuple):
    """A rule's step: what was seen of the gradients, what it makes of that, and how it acts.

    Attributes:
      seen: a tree of scalars and ``[num_tensors]``, all that the decision needs of the gradients.
      decide: from what was seen and the state to a :class:`Decision`, element by element: it gets
        arrays with one more axis in front, see :func:`jaxclip.optim._together.together`. Fields
        that are no numbers of the report's shape are as they were.
      act: from the gradients, and scalars or one list of scalars a number of the decision, to the
        update, and to own fields that are stored as they come.
      stored: further own fields that are stored as they come.
    """

    seen: Any
    decide: Callable[[Any, Any], Decision]
    act: Act
    stored: Mapping[str, Any] = MappingProxyType({})


class Context(NamedTuple):
    """What a rule may know beside gradients and state.

    Attributes:
      count: int32 scalar, number of updates before this one.
      dtype: of the statistics.
      treedef: structure of the gradients.
      params: the parameters, or None where the caller gives none.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    dtype: Any
    treedef: Any
    params: Any = None

    def value(self, hyperparameter: _base.Hyperparameter) -> jax.Array:
        """A hyperparameter now."""
        return jax.lax.stop_gradient(_base.hyperparameter(hyperparameter, self.count, self.dtype))

    def complement(self, hyperparameter: _base.Hyperparameter) -> jax.Array:
        """1 minus a hyperparameter now."""
        return jax.lax.stop_gradient(_base.complement(hyperparameter, self.count, self.dtype))


Rule = Callable[[list[jax.Array], Any, Context], Plan]


def clipper(
    state_class: type,
    rule: Rule,
    own: Callable[[Any, tuple[int, ...], Any], dict[str, Any]] = lambda params, shape, dtype: {},
    *,
    per_tensor: bool,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that scales or cuts gradients by a rule.

    To ``jax.grad`` all that the rule computes is constant: the update's derivative is that of
    factor times gradient with a fixed factor.

    Args:
      state_class: a ``NamedTuple`` with ``count``, the fields of the convention and the rule's own.
      rule: from gradients (as leaves), state and context to a plan.
      own: from parameters, shape of the report and dtype to the rule's own fields before the first
        step.
      per_tensor: whether the report holds one entry a tensor.
    """

    def init_fn(params: Any) -> Any:
        dtype = _base.statistics_dtype(params)
        shape = (len(jax.tree.leaves(params)),) if per_tensor else ()
        return state_class(
            count=jnp.zeros((), jnp.int32),
            **own(params, shape, dtype),
            **_base.initial_report(shape, dtype),
        )

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        given = _flatten(updates, state.norm.size if per_tensor else None)
        before = jax.lax.stop_gradient(state)
        context = Context(before.count, before.norm.dtype, given.treedef, params)
        plan = rule(jax.lax.stop_gradient(given.leaves), before, context)
        shape = before.norm.shape
        # Of the state what may go into one kernel: no trees, no rings.
        small: dict[str, Any] = {
            name: value
            for name, value in before._asdict().items()
            if isinstance(value, (jax.Array, np.ndarray)) and value.shape in ((), shape)
        }

        def settle(inputs: tuple[Any, dict[str, Any]]) -> _Settled:
            seen, fields = inputs
            return _settle(plan.decide(seen, before._replace(**fields)), fields, given, per_tensor)

        settled = together(settle, (jax.lax.stop_gradient(plan.seen), small), shape)
        out, as_they_come = plan.act(given.leaves, *_unpacked(settled.numbers))
        new_state = before._replace(
            count=optax.safe_increment(before.count),
            **settled.fields,
            **plan.stored,
            **jax.lax.stop_gradient(dict(as_they_come)),
        )
        return given.restore(out), new_state

    return optax.GradientTransformationExtraArgs(init_fn, _base.own_promotion(update_fn))


class _Settled(NamedTuple):
    """Numbers to act by, and new fields of the state."""

    numbers: tuple[jax.Array, ...]
    fields: dict[str, jax.Array]


def _settle(
    decision: Decision, before: Mapping[str, jax.Array], given: _Given, per_tensor: bool
) -> _Settled:
    """What becomes of a decision where the norm is not finite, or a tensor has no gradient."""
    finite = jnp.isfinite(decision.norm) if decision.finite is None else decision.finite

    def after(new: jax.Array, old: jax.Array) -> jax.Array:
        return new if given.all_present or not per_tensor else given.merge(new, old)

    count = _base.increment_where(before["nonfinite_count"], ~finite)
    fields = {
        "norm": after(decision.norm, before["norm"]),
        "clipped": after(decision.clipped | ~finite, before["clipped"]),
        "nonfinite_count": after(count, before["nonfinite_count"]),
    }
    for name, value in {"threshold": decision.threshold, **decision.own}.items():
        fields[name] = after(jnp.where(finite, value, before[name]), before[name])
    numbers = decision.numbers
    if numbers:
        numbers = (jnp.where(finite, numbers[0], jnp.nan).astype(numbers[0].dtype), *numbers[1:])
    return _Settled(numbers, fields)


def _unpacked(numbers: Sequence[jax.Array]) -> list[Any]:
    """Scalars as they are, and of vectors ``[num_tensors]`` one list of scalars each."""
    if not numbers or not numbers[0].ndim:
        return list(numbers)
    places = _places.places(range(numbers[0].size))
    return [[_places.at(vector, place) for place in places] for vector in numbers]


def each(one: Callable[..., jax.Array]) -> Act:
    """Does the same to each tensor: ``one(leaf, *numbers)``, all of them scalars."""
    one = jax.jit(one)  # traced once a shape

    def act(leaves: list[jax.Array], *numbers: Any) -> tuple[list[jax.Array], Mapping[str, Any]]:
        columns = [
            number if isinstance(number, list) else [number] * len(leaves) for number in numbers
        ]
        return [one(*of_one) for of_one in zip(leaves, *columns, strict=True)], {}

    return act


def _rescaled(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """A tensor times a factor, zero where that is NaN."""
    return _base.rescale(leaf, factor, factor == factor)


# Multiplies gradients by the decision's one number.
scale = each(_rescaled)


class _Given(NamedTuple):
    """Gradients as leaves; ``None`` where there was a parameter is a tensor without elements."""

    leaves: list[jax.Array]
    treedef: Any
    present: Sequence[bool]

    @property
    def all_present(self) -> bool:
        return all(self.present)

    def merge(self, new: jax.Array, old: jax.Array) -> jax.Array:
        """The new entries of tensors that have a gradient, the old ones of the others."""
        return jnp.where(jnp.asarray(self.present), new, old)

    def restore(self, leaves: Sequence[jax.Array]) -> Any:
        """The tree of updates, ``None`` for ``None``."""
        values = [leaf if there else None for leaf, there in zip(leaves, self.present, strict=True)]
        return jax.tree.unflatten(self.treedef, values)


def _flatten(updates: Any, expected: int | None) -> _Given:
    """Leaves of a tree; see :func:`_base.flatten`, whose error for a wrong number this raises.

    ``None`` is a tensor without a gradient in this step if with those the number is as expected,
    and no tensor otherwise.
    """
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda node: node is None)
    present = [leaf is not None for leaf in leaves]
    if all(present) or (expected is not None and len(leaves) != expected):
        plain, treedef = _base.flatten(updates, expected)
        return _Given(plain, treedef, [True] * len(plain))
    filled = [jnp.zeros((0,)) if leaf is None else jnp.asarray(leaf) for leaf in leaves]
    return _Given(filled, treedef, present)
