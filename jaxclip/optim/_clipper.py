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
import optax

from jaxclip.optim import _base, _unpack

# From gradients to updates, and new values of own fields that come out on the way.
Act = Callable[[list[jax.Array]], tuple[list[jax.Array], Mapping[str, Any]]]


class Decision(NamedTuple):
    """What a rule makes of one step's gradients; arrays are scalars or ``[num_tensors]``.

    Attributes:
      norm: what it looked at.
      threshold: what it allows.
      clipped: whether it acts.
      act: from the gradients to the update, and to own fields that are stored as they come.
      own: new values of the state's own fields; where not finite they stay.
      finite: whether the rule may act and learn; by default whether ``norm`` is finite.
    """

    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    act: Act
    own: Mapping[str, jax.Array] = MappingProxyType({})
    finite: jax.Array | None = None


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
        return _base.hyperparameter(hyperparameter, self.count, self.dtype)

    def complement(self, hyperparameter: _base.Hyperparameter) -> jax.Array:
        """1 minus a hyperparameter now."""
        return _base.complement(hyperparameter, self.count, self.dtype)


Rule = Callable[[list[jax.Array], Any, Context], Decision]


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
      rule: from gradients (as leaves), state and context to a decision.
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
        decision = rule(jax.lax.stop_gradient(given.leaves), before, context)
        finite = jnp.isfinite(decision.norm) if decision.finite is None else decision.finite

        def after(new: Any, old: Any, where: jax.Array = finite) -> Any:
            new = jnp.where(where, new, old)
            return new if given.all_present or not per_tensor else given.merge(new, old)

        noted = {
            "norm": after(decision.norm, before.norm, jnp.bool_(True)),
            "threshold": after(decision.threshold, before.threshold),
            "clipped": after(decision.clipped | ~finite, before.clipped, jnp.bool_(True)),
            "nonfinite_count": after(
                _base.increment_where(before.nonfinite_count, ~finite),
                before.nonfinite_count,
                jnp.bool_(True),
            ),
        }
        mine = {name: after(value, getattr(before, name)) for name, value in decision.own.items()}
        out, as_they_come = decision.act(given.leaves)
        new_state = before._replace(
            count=optax.safe_increment(before.count),
            **noted,
            **mine,
            **jax.lax.stop_gradient(dict(as_they_come)),
        )
        return given.restore(out), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale(factor: jax.Array, finite: jax.Array) -> Act:
    """Multiplies gradients by a factor: zero where the norm was not finite.

    Args:
      factor: of the statistics' dtype, a scalar or one for each tensor.
      finite: bool, of the same shape.
    """

    def one(leaf: jax.Array, by: jax.Array) -> jax.Array:
        return _base.rescale(leaf, by, by == by)

    if not factor.ndim:
        by = _unpack.computed_once(jnp.where(finite, factor, jnp.nan).astype(factor.dtype))
        return lambda leaves: ([one(leaf, by) for leaf in leaves], {})
    return each(one, unpack_where(finite, factor))


def each(one: Callable[..., jax.Array], *numbers: Sequence[jax.Array]) -> Act:
    """Does the same to each tensor: ``one(leaf, *its numbers)``."""
    return lambda leaves: ([one(*of_one) for of_one in zip(leaves, *numbers, strict=True)], {})


def unpack_where(finite: jax.Array, vector: jax.Array) -> list[jax.Array]:
    """One scalar a tensor, NaN where not finite: one number to hand to a kernel instead of two."""
    return _unpack.unpack(jnp.where(finite, vector, jnp.nan).astype(vector.dtype))


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
