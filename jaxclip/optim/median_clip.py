"""Median clipping: follow the gradient by clipped steps, which estimates its median."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _moments

KINDS = ("component", "vector")


class MedianClipState(NamedTuple):
    """State of :func:`median_clip`.

    The report holds scalars for ``kind="vector"`` and one entry a tensor for ``kind="component"``.

    Attributes:
      count: int32 scalar, number of updates.
      median: the estimate m, a tree like the parameters, float32 (float64 for such parameters).
      norm: size of the innovation g - m in the last step: L2 norm, or largest absolute value.
      threshold: τ of the last step.
      clipped: bool, was the innovation clipped.
      nonfinite_count: int32, number of updates with a NaN or infinite innovation.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    median: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def median_clip(tau: _base.Hyperparameter, kind: str = "component") -> optax.GradientTransformation:
    r"""Replaces the gradient by a running estimate of its median.

    .. math::

      m_t = m_{t-1} + \mathrm{clip}_\tau(g_t - m_{t-1}), \qquad m_0 = 0,

    and :math:`m_t` is the update. With ``kind="component"`` every coordinate of the innovation is
    clipped to :math:`[-\tau, \tau]` (for small τ a sign method, estimating the median of every
    coordinate); with ``kind="vector"`` the innovation of the whole tree is scaled to an L2 norm of
    at most τ (estimating the geometric median).

    Where the innovation is NaN or infinite (in any coordinate of the tensor for ``"component"``, of
    the tree for ``"vector"``) m stays as it was and the update is zero.

    State: one copy of the parameters, in float32, and the report. Cost: one reduction over g - m.

    Args:
      tau: τ, the largest step of the estimate; of the size of the gradient's own noise, per
        coordinate or in norm. There is no default, since it has the gradient's units.
      kind: ``"component"`` or ``"vector"``.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`MedianClipState`.

    Raises:
      ValueError: unknown ``kind``, or ``tau`` out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.median_clip(tau=0.5)
      >>> gradient = jnp.asarray([0.25, -100.0])
      >>> updates, state = tx.update(gradient, tx.init(gradient))
      >>> updates.tolist()
      [0.25, -0.5]

    References:
      Schaipp et al., `SGD with Clipping is Secretly Estimating the Median Gradient
      <https://arxiv.org/abs/2402.12828>`_, 2024.
    """
    if kind not in KINDS:
        raise ValueError(f"median_clip.kind={kind!r}; use one of {', '.join(KINDS)}")
    _base.check_number("median_clip.tau", tau, above=0)

    def init_fn(params: Any) -> MedianClipState:
        dtype = _base.statistics_dtype(params)
        shape = () if kind == "vector" else (len(jax.tree.leaves(params)),)
        return MedianClipState(
            count=jnp.zeros((), jnp.int32),
            median=jax.tree.map(_base.zeros_like_wide, params),
            **_base.initial_report(shape, dtype),
        )

    def update_fn(
        updates: Any, state: MedianClipState, params: Any = None
    ) -> tuple[Any, MedianClipState]:
        leaves, treedef = _base.flatten(updates, len(jax.tree.leaves(state.median)))
        dtypes = _moments.update_dtypes(params, leaves)
        medians = treedef.flatten_up_to(state.median)
        dtype = state.norm.dtype
        bound = _base.hyperparameter(tau, state.count, dtype)
        pairs = [_moments.aside(g, m) for g, m in zip(leaves, medians, strict=True)]
        innovations = [g.astype(m.dtype) - m for g, m in pairs]

        if kind == "vector":
            norm = _base.global_norm(leaves, dtype, minus=medians)
        else:
            norm = _base.tensor_maxima(innovations, dtype)
        finite = jnp.isfinite(norm)
        clipped = norm > bound
        factor = jnp.where(clipped, _base.safe_divide(bound, norm, 1.0), 1.0)
        moved = []
        for i, (innovation, median) in enumerate(zip(innovations, medians, strict=True)):
            if kind == "vector":
                step, keep = innovation * factor, finite
            else:
                step, keep = jnp.clip(innovation, -bound, bound), finite[i]
            moved.append((jnp.where(keep, median + step.astype(median.dtype), median), keep))

        new_state = MedianClipState(
            count=optax.safe_increment(state.count),
            median=jax.tree.unflatten(treedef, [median for median, _ in moved]),
            norm=norm,
            threshold=jnp.where(finite, jnp.broadcast_to(bound, norm.shape), state.threshold),
            clipped=clipped | ~finite,
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        out = [
            _moments.finish(keep, median, dtype)
            for dtype, (median, keep) in zip(dtypes, moved, strict=True)
        ]
        return jax.tree.unflatten(treedef, out), new_state

    return optax.GradientTransformation(init_fn, update_fn)
