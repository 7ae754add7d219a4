"""Median clipping: follow the gradient by clipped steps, which estimates its median."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper, _moments

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


def median_clip(
    tau: _base.Hyperparameter, kind: str = "component"
) -> optax.GradientTransformationExtraArgs:
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
      An ``optax.GradientTransformationExtraArgs`` with state :class:`MedianClipState`.

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

    per_tensor = kind == "component"

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, Any]:
        del shape, dtype
        return {"median": jax.tree.map(_base.zeros_like_wide, params)}

    def rule(
        leaves: list[jax.Array], state: MedianClipState, now: _clipper.Context
    ) -> _clipper.Plan:
        medians, absent = _medians_of(leaves, state.median, now.treedef)
        bound = now.value(tau)
        keeps: list[jax.Array] = []
        if per_tensor:
            innovations = list(map(_innovation, leaves, medians))
            norm, keeps = _base.maxima_and_finite(innovations, now.dtype)
        else:
            norm = _base.global_norm(leaves, now.dtype, minus=medians)

        params = None
        if now.params is not None:
            # A hole in the parameters where there is one in the gradients.
            found = zip(now.treedef.flatten_up_to(now.params), leaves, strict=True)
            params = [leaf if param is None else param for param, leaf in found]
        dtypes = _moments.update_dtypes(params, leaves)

        def decide(norm: jax.Array, state: MedianClipState) -> _clipper.Decision:
            del state
            clipped, limit = norm > bound, jnp.broadcast_to(bound, norm.shape)
            factor = jnp.where(clipped, _base.safe_divide(bound, norm, 1.0), 1.0)
            numbers = () if per_tensor else (factor, jnp.isfinite(norm))
            return _clipper.Decision(norm, limit, clipped, numbers)

        def act(
            gradients: list[jax.Array], by: Any = bound, finite: Any = None
        ) -> tuple[list[jax.Array], dict[str, Any]]:
            count = len(gradients)
            clip = _clip if per_tensor else operator.mul
            finites = keeps if per_tensor else [finite] * count
            moved = [
                _move(*of_one, clip=clip, dtype=dtype)
                for *of_one, dtype in zip(
                    gradients, medians, [by] * count, finites, dtypes, strict=True
                )
            ]
            stored, updates = [new for new, _ in moved], [update for _, update in moved]
            kept = [old if gone else new for new, (gone, old) in zip(stored, absent, strict=True)]
            return updates, {"median": now.treedef.unflatten(kept)}

        return _clipper.Plan(norm, decide, act)

    return _clipper.clipper(MedianClipState, rule, own, per_tensor=per_tensor)


def _medians_of(
    leaves: list[jax.Array], median: Any, treedef: Any
) -> tuple[list[jax.Array], list[tuple[bool, Any]]]:
    """The median of each tensor that has a gradient, and (has it none?, its median) of each.

    A tensor without a gradient is one without elements here.
    """
    olds = _base.matching(treedef, None, median)
    pairs = zip(olds, leaves, strict=True)
    if not all(old is None or leaf.shape in (old.shape, (0,)) for old, leaf in pairs):
        _base.matching(treedef, [leaf.shape for leaf in leaves], median)
    absent = [
        (old is None or old.shape != leaf.shape, old)
        for leaf, old in zip(leaves, olds, strict=True)
    ]
    return [jnp.zeros((0,)) if gone else old for gone, old in absent], absent


@functools.partial(jax.jit, static_argnames=("dtype", "clip"))  # traced once a shape
def _move(
    gradient: jax.Array,
    median: jax.Array,
    step: jax.Array,
    keep: jax.Array,
    dtype: Any,
    clip: Callable[[jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """A tensor's median after a step, and the update in its dtype.

    Args:
      gradient: g.
      median: m, of the same shape.
      step: what the innovation g - m is clipped or multiplied by; scalar.
      keep: bool scalar, false where the median stays and the update is zero.
      dtype: of the update.
      clip: ``(innovation, step) -> `` what the median moves by.
    """
    # Behind a barrier: else XLA would write g - m to memory, for this and the norm to share. What
    # all tensors share goes through it, too: else there would be two kernels for tensors of one
    # shape, one of those that share it and one of those that do not.
    gradient, median, step, keep = _moments.aside(gradient, median, step, keep)
    innovation = _innovation(gradient, median)
    moved = median + clip(innovation, step).astype(median.dtype)
    # The update comes from what is stored: from `moved`, XLA would compute that twice.
    new = jax.lax.select(keep, moved, median)
    update = jax.lax.select(keep, new, jax.lax.full_like(new, 0))
    return new, update.astype(dtype)


def _innovation(leaf: jax.Array, median: jax.Array) -> jax.Array:
    """g - m, in the median's precision."""
    return leaf.astype(median.dtype) - median


def _clip(innovation: jax.Array, bound: jax.Array) -> jax.Array:
    """Elements within ±bound; complex ones by their magnitude."""
    if jnp.issubdtype(innovation.dtype, jnp.complexfloating):
        size = jnp.abs(innovation)
        return innovation * jnp.where(size > bound, bound / jnp.where(size > 0, size, 1), 1)
    # Of the same shape: what clamp differentiates to wants that.
    bound = jnp.broadcast_to(bound.astype(innovation.dtype), innovation.shape)
    return jax.lax.clamp(-bound, innovation, bound)
