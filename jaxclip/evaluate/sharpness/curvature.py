"""Second derivatives of a loss: products with the Hessian, along an update, traces by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.evaluate.sharpness.fixed_loss import Loss, Params, paths_of


class Direction(NamedTuple):
    """The loss along an update.

    Attributes:
      sharpness: float32[], u'Hu / |u|^2; 0 of a zero update.
      slope: float32[], g'u.
      predicted: float32[], g'u + u'Hu / 2, the change of the loss to second order.
      parts: tree, u_i (Hu)_i of each coordinate; they add up to u'Hu.
    """

    sharpness: jax.Array
    slope: jax.Array
    predicted: jax.Array
    parts: Params


def hvp(loss: Loss, params: Params, vector: Params) -> Params:
    """The Hessian of the loss times a vector, without the Hessian: two passes more than a gradient.

    Args:
      loss: ``params -> float32[]``.
      params: where.
      vector: tree like ``params``.
    """
    product: Params = jax.jvp(jax.grad(loss), (params,), (vector,))[1]
    return product


def directional_sharpness(loss: Loss, params: Params, update: Params) -> Direction:
    """The curvature of the loss along an update (Pan & Li, 2023, arXiv:2306.00204).

    A small value means that a longer step along it still lowers the loss. The paper finds that of
    SGD's update far larger than Adam's, and lower where the few largest coordinates are clipped.

    Args:
      loss: ``params -> float32[]``.
      params: where.
      update: tree like ``params``, what would be added to it.
    """
    gradient, product = jax.jvp(jax.grad(loss), (params,), (update,))
    parts = jax.tree.map(jnp.multiply, update, product)
    curved = optax.tree.sum(parts)
    slope = optax.tree.vdot(gradient, update)
    square = optax.tree.norm(update, squared=True)
    return Direction(
        jnp.where(square > 0, curved / jnp.where(square > 0, square, 1.0), 0.0),
        slope,
        slope + curved / 2,
        parts,
    )


def share_of_coordinates(parts: Params, share: float = 0.9) -> jax.Array:
    """float32[]: the smallest share of coordinates that carry ``share`` of u'Hu.

    Args:
      parts: of :class:`Direction`.
      share: in (0, 1).

    Returns:
      NaN where u'Hu is not positive.
    """
    flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(parts)])
    carried = jnp.cumsum(jnp.sort(flat)[::-1])
    count = 1 + jnp.sum(carried < share * carried[-1])
    # Parts may be negative: the sum may be reached, and be fallen below at the end again.
    first = jnp.minimum(count, 1 + jnp.argmax(carried >= share * carried[-1]))
    return jnp.where(carried[-1] > 0, first / flat.size, jnp.nan)


def hessian_diagonal(loss: Loss, params: Params, key: jax.Array, probes: int) -> Params:
    """Hutchinson's estimate of the Hessian's diagonal: the mean of v * Hv over random signs v.

    Exact with one probe where the Hessian is diagonal.

    Args:
      loss: ``params -> float32[]``.
      params: where.
      key: a PRNG key.
      probes: products with the Hessian; 50 to 100 for a trace.
    """

    def body(total: Params, key: jax.Array) -> tuple[Params, None]:
        signs = optax.tree.random_like(key, params, sampler=jax.random.rademacher)
        signs = jax.tree.map(lambda v, p: v.astype(p.dtype), signs, params)
        product = hvp(loss, params, signs)
        return jax.tree.map(lambda t, v, h: t + v * h / probes, total, signs, product), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(body, zeros, jax.random.split(key, probes))[0]


def trace_by_group(diagonal: Params, groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The trace of the Hessian's block of each group: its sum over the group's tensors.

    Args:
      diagonal: :func:`hessian_diagonal`.
      groups: paths by name (:func:`jaxclip.evaluate.sharpness.groups_of`).
    """
    leaves = dict(zip(paths_of(diagonal), jax.tree.leaves(diagonal), strict=True))
    return {
        name: jnp.sum(jnp.stack([jnp.sum(leaves[path]) for path in paths]))
        for name, paths in groups.items()
    }
