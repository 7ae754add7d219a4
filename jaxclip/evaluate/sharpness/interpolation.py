"""The way between two models: losses, barriers of single layers, and what to do about these.

Between a zero-shot model and its fine-tuned self (WiSE-FT) some layers rise above the straight line
between the ends: "straggler layers" (arXiv:2410.16476). Here a layer's barrier is that of the line
on which this layer alone is interpolated (as Adilova et al., 2023, arXiv:2307.06966, do).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.evaluate.sharpness.fixed_loss import Loss, Params, paths_of


def interpolate(
    before: Params, after: Params, alpha: Any, only: Collection[str] | None = None
) -> Params:
    """(1 - alpha) before + alpha after; tensors that are not among ``only`` are those of ``after``.

    Args:
      before: tree of parameters.
      after: of the same.
      alpha: 0 to 1 between them, beyond that further along the line; both ends are exact.
      only: paths of tensors; None for all.
    """
    chosen = None if only is None else frozenset(only)
    leaves = [
        (1 - alpha) * a + alpha * b if chosen is None or path in chosen else b
        for path, a, b in zip(
            paths_of(after), jax.tree.leaves(before), jax.tree.leaves(after), strict=True
        )
    ]
    result: Params = jax.tree.unflatten(jax.tree.structure(after), leaves)
    return result


def losses_between(
    loss: Loss,
    before: Params,
    after: Params,
    alphas: jax.Array,
    only: Collection[str] | None = None,
) -> jax.Array:
    """float32[A]: the loss at each alpha."""

    def one(alpha: jax.Array) -> jax.Array:
        return loss(interpolate(before, after, alpha, only))

    return jax.lax.map(one, jnp.asarray(alphas))


def layer_barriers(
    loss: Loss,
    before: Params,
    after: Params,
    groups: Mapping[str, Sequence[str]],
    alphas: jax.Array,
) -> dict[str, jax.Array]:
    """B_l(alpha) of each layer, float32[A]: above the straight line between the ends of its way.

    All other layers are those of ``after``. B_l is 0 at 0 and 1, and everywhere where the ends are
    equal. The largest value ranks layers.

    Args:
      loss: ``params -> float32[]``.
      before: one end.
      after: the other end.
      groups: paths of tensors by name of the layer.
      alphas: float32[A], in 0…1.
    """
    alphas = jnp.asarray(alphas, jnp.float32)
    stacked = jnp.concatenate([alphas, jnp.asarray([0.0, 1.0])])
    barriers = {}
    for name, paths in groups.items():
        values = losses_between(loss, before, after, stacked, paths)
        line = (1 - alphas) * values[-2] + alphas * values[-1]
        barriers[name] = values[:-2] - line
    return barriers


def prune_task_vector(before: Params, after: Params, paths: Collection[str], keep: float) -> Params:
    """``after`` with only the largest changes of some tensors.

    Args:
      before: where fine-tuning began.
      after: where it ended.
      paths: tensors (those of the layers of largest barrier) whose changes are pruned.
      keep: share of the elements of each tensor that keep their change, the largest ones; the
        others are as ``before``.

    Raises:
      ValueError: a share out of range.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep={keep} must be from 0 to 1")
    chosen = frozenset(paths)

    def prune(path: str, a: jax.Array, b: jax.Array) -> jax.Array:
        if path not in chosen or keep == 1:
            return b
        change = jnp.abs(b - a)
        count = round(keep * change.size)
        if not count:
            return a
        limit = jnp.sort(jnp.ravel(change))[-count]
        return jnp.where(change >= limit, b, a)

    leaves = [
        prune(path, a, b)
        for path, a, b in zip(
            paths_of(after), jax.tree.leaves(before), jax.tree.leaves(after), strict=True
        )
    ]
    result: Params = jax.tree.unflatten(jax.tree.structure(after), leaves)
    return result
