"""AutoClip: clip the global gradient norm at a percentile of the norms seen so far."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _clipper, _quantiles


class AutoclipState(NamedTuple):
    """State of :func:`autoclip`.

    Attributes:
      count: int32 scalar, number of updates.
      history: [history_size], ring buffer of the finite norms; entry
        ``(count - nonfinite_count) % history_size`` is written next.
      norm: global norm seen in the last step.
      threshold: percentile of the norms in the last step.
      clipped: bool, were the gradients scaled in the last step.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    history: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def autoclip(
    percentile: _base.Hyperparameter = 10.0, history_size: int = 10_000
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm at a percentile of the global norms seen, the current one included.

    .. math::

      \eta_t = Q_{q\%}(\|G_1\|, \dots, \|G_t\|), \qquad
      \hat G_t = \min(1, \eta_t / \|G_t\|) \, G_t.

    The percentile interpolates linearly and is exact over the last ``history_size`` norms. A step
    with a NaN or infinite norm gives a zero update and does not enter the history.

    State: ``history_size`` floats and the report. Cost: one reduction over the gradients; the
    percentile of 10 000 norms takes a fraction of a millisecond.

    Args:
      percentile: q in [0, 100]; the paper uses 10, that is, nine of ten steps are clipped.
      history_size: number of norms kept. Static: within ``optax.inject_hyperparams`` name it in
        ``static_args``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`AutoclipState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``history_size`` is not an integer known when tracing.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.autoclip(percentile=50.0), optax.adam(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for size in (1.0, 2.0, 30.0):
      ...     _, state = tx.update({"w": jnp.asarray([size, 0.0])}, state, params)
      >>> float(state[0].norm), float(state[0].threshold), bool(state[0].clipped)
      (30.0, 2.0, True)

    References:
      Seetharaman et al., `AutoClip: Adaptive Gradient Clipping for Source Separation Networks
      <https://arxiv.org/abs/2007.14469>`_, 2020.
    """
    _base.check_number("autoclip.percentile", percentile, 0, 100)
    size = _base.static_integer("autoclip.history_size", history_size, 1)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params, shape
        return {"history": jnp.zeros((size,), dtype)}

    def rule(leaves: list[jax.Array], state: AutoclipState, now: _clipper.Context) -> _clipper.Plan:
        norm = _base.global_norm(leaves, now.dtype)
        finite = jnp.isfinite(norm)
        collected = state.count - state.nonfinite_count
        history = jnp.asarray(state.history).at[collected % size].set(norm)
        history = jnp.where(finite, history, state.history)
        filled = jnp.minimum(_base.increment_where(collected, finite), size)
        rank, weight = _position(percentile, size, filled, now.count, now.dtype)
        found = _filled_quantile(history, filled, rank, weight)
        return _clipper.Plan((norm, found), _decide, _clipper.scale, stored={"history": history})

    return _clipper.clipper(AutoclipState, rule, own, per_tensor=False)


def _decide(seen: tuple[jax.Array, jax.Array], state: AutoclipState) -> _clipper.Decision:
    """The decision on a norm, given the percentile."""
    norm, found = seen
    threshold = jnp.where(jnp.isfinite(norm), found, state.threshold)
    clipped = norm > threshold
    factor = jnp.where(clipped, _base.safe_divide(threshold, norm, 1.0), 1.0)
    return _clipper.Decision(norm, threshold, clipped, (factor.astype(norm.dtype),))


def _position(
    percentile: _base.Hyperparameter, size: int, filled: jax.Array, step: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """Rank of the percentile of ``filled`` values, and how far towards the next one."""
    last = jnp.maximum(filled - 1, 0)
    if isinstance(percentile, (int, float)):
        # Exact, from a table: in float32 the fraction of a rank in the thousands has no digits.
        positions = np.asarray(percentile / 100 * np.arange(size))
        ranks = np.floor(positions)
        return jnp.asarray(ranks, jnp.int32)[last], jnp.asarray(positions - ranks, dtype)[last]
    position = _base.hyperparameter(percentile, step, dtype) * last.astype(dtype)
    rank = jnp.floor(position / 100)
    return rank.astype(jnp.int32), jnp.clip((position - 100 * rank) / 100, 0, 1)


def _filled_quantile(
    history: jax.Array, filled: jax.Array, rank: jax.Array, weight: jax.Array
) -> jax.Array:
    """Interpolated order statistic of the first ``filled`` entries."""
    # Infinity sorts above all norms, where no rank below `filled` looks.
    padded = jnp.where(jnp.arange(history.shape[0]) < filled, history, jnp.inf)
    found = _quantiles.absolute_quantiles([padded], rank[None], weight[None], history.dtype)
    return found.quantile[0]
