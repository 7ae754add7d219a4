"""Coordinate clipping: the largest coordinates of each tensor are set to a common threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _clipper, _quantiles


class ClipByCoordinateState(NamedTuple):
    """State of :func:`clip_by_coordinate`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      norm: largest absolute value seen in the last step.
      threshold: τ of the last step.
      clipped: bool, was any coordinate above τ.
      nonfinite_count: int32, number of updates with a NaN or infinite coordinate.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def clip_by_coordinate(
    fraction: _base.Hyperparameter = 0.1,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the largest fraction of each tensor's coordinates at a threshold value.

    For every tensor, with τ the :math:`(1 - p)`-quantile (linear interpolation) of the absolute
    values of its elements,

    .. math::

      \tau = Q_{1-p}(|g|), \qquad \hat g = \min(\max(g, -\tau), \tau).

    It may follow the optimizer, to clip the update instead of the gradient:
    ``optax.chain(optax.scale_by_adam(), clip_by_coordinate(), optax.scale_by_learning_rate(lr))``.

    The quantile is exact, by counting instead of sorting, so that sharded tensors are not gathered.

    State: the report. Cost: 17 reductions a tensor (nine for bfloat16 gradients); by far the most
    expensive of the clippers. Compiles in some twice ``optax.clip_by_global_norm``'s time.

    Args:
      fraction: p, the fraction of coordinates to clip, in [0, 1].

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state
      :class:`ClipByCoordinateState`. ``norm`` and ``threshold`` are absolute values of coordinates.

    Raises:
      ValueError: ``fraction`` is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.clip_by_coordinate(fraction=0.25)
      >>> gradient = jnp.asarray([1.0, -2.0, 3.0, -4.0, 100.0])
      >>> updates, state = tx.update(gradient, tx.init(gradient))
      >>> updates.tolist()
      [1.0, -2.0, 3.0, -4.0, 4.0]

    References:
      Pan and Li, `Toward Understanding Why Adam Converges Faster Than SGD for Transformers
      <https://arxiv.org/abs/2306.00204>`_, 2023.
    """
    _base.check_number("clip_by_coordinate.fraction", fraction, 0, 1)

    def rule(
        leaves: list[jax.Array], state: ClipByCoordinateState, now: _clipper.Context
    ) -> _clipper.Plan:
        # Tensors without elements have no quantile; give them one.
        filled = [_magnitude(leaf) if leaf.size else jnp.zeros((1,), leaf.dtype) for leaf in leaves]
        rank, weight = _position(fraction, [leaf.size for leaf in filled], now.count, now.dtype)
        found = _quantiles.absolute_quantiles(filled, rank, weight, now.dtype)
        return _clipper.Plan(found, _decide, _clipper.each(_clip))

    return _clipper.clipper(ClipByCoordinateState, rule, per_tensor=True)


def _decide(found: _quantiles.Quantiles, state: ClipByCoordinateState) -> _clipper.Decision:
    """The decision by the quantiles."""
    del state
    tau, maximum = found
    return _clipper.Decision(maximum, tau, maximum > tau, (tau,))


def _position(
    fraction: _base.Hyperparameter, sizes: Sequence[int], count: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Rank of the (1 - fraction)-quantile of each tensor, and how far towards the next one."""
    last = np.asarray(sizes, np.float64) - 1
    if isinstance(fraction, (int, float)):
        # Exact: float32 can't count the elements of a large tensor.
        position = np.asarray((1.0 - fraction) * last)
        floor = np.floor(position)
        return jnp.asarray(floor, jnp.int32), jnp.asarray(position - floor, dtype)
    traced = _base.complement(fraction, count, dtype) * jnp.asarray(last, dtype)
    rank = jnp.floor(traced)
    return rank.astype(jnp.int32), traced - rank


def _magnitude(leaf: jax.Array) -> jax.Array:
    """A real tensor as it is (the quantile takes absolute values), a complex one's magnitudes."""
    return jnp.abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else leaf


def _clip(leaf: jax.Array, tau: jax.Array) -> jax.Array:
    """Elements within ±tau, in its precision; complex ones by magnitude; zero if it is NaN."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        size = jnp.abs(leaf)
        clipped = leaf * jnp.where(size > tau, tau / jnp.where(size > 0, size, 1), 1)
    else:
        clipped = jax.lax.clamp(-tau, leaf.astype(tau.dtype), tau)
    return jax.lax.select(tau == tau, clipped, jax.lax.full_like(clipped, 0)).astype(leaf.dtype)
