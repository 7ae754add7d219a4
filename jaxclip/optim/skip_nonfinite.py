"""Skipping a whole step whose gradient or loss is not finite, moments and all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _skip
from jaxclip.optim._together import together


class SkipNonfiniteState(NamedTuple):
    """State of :func:`skip_nonfinite`; scalars beside the wrapped state.

    Attributes:
      count: int32, number of updates, skipped ones included.
      streak: int32, number of steps skipped in a row, up to the last one.
      inner_state: of the wrapped transformation.
      norm: global norm of the last gradient.
      threshold: ``norm`` of the last step that was not skipped.
      clipped: bool, was the last step skipped.
      nonfinite_count: int32, number of steps skipped so far.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    streak: jax.Array
    inner_state: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def skip_nonfinite(
    inner: optax.GradientTransformation, extra_args: Sequence[str] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Makes a step with a NaN or infinite gradient no step at all.

    .. math::

      (u, s) \leftarrow \begin{cases}
        \mathrm{inner}(g, s) & \text{if every } |g_j| < \infty \text{ and the loss is finite}, \\
        (0, s) & \text{else.} \end{cases}

    A clipper in a chain before AdamW can't do that: it gives AdamW a gradient of zero, upon which
    the parameters still move by the old momentum and by weight decay, the moments decay, and counts
    and schedules go on. Here all of the wrapped transformation's state stays as it was. Beside
    ``optax.apply_if_finite``: a bad gradient is never let through, however many there are in a row,
    and a loss that is not finite counts, too.

    State: three scalars and the report. Cost: one reduction over the gradients.

    Args:
      inner: any transformation: an optimizer, or a chain of clippers and optimizer.
      extra_args: names of the extra arguments that ``inner`` takes, if it does not take any as
        optax asks for (``optax.contrib.sam`` takes ``("grad_fn",)``).

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`SkipNonfiniteState`. Its
      ``update`` takes ``value``, the loss, if there is one at hand, and passes it on with all other
      extra arguments that the wrapped transformation takes.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.skip_nonfinite(optax.adamw(1e-2))
      >>> params = jnp.ones(2)
      >>> state = tx.init(params)
      >>> for gradient in ([1.0, 1.0], [jnp.nan, 1.0]):
      ...     updates, state = tx.update(jnp.asarray(gradient), state, params)
      >>> updates.tolist(), int(state.inner_state[0].count), int(state.nonfinite_count)
      ([0.0, 0.0], 1, 1)

    References:
      The step is skipped as mixed-precision training does it: Micikevicius et al., `Mixed Precision
      Training <https://arxiv.org/abs/1710.03740>`_, 2018.
    """
    _base.check_inner("skip_nonfinite", inner)
    _skip.check_extra_args("skip_nonfinite", extra_args)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Any) -> SkipNonfiniteState:
        return SkipNonfiniteState(
            count=jnp.zeros((), jnp.int32),
            streak=jnp.zeros((), jnp.int32),
            inner_state=inner.init(params),
            **_base.initial_report((), _base.statistics_dtype(params)),
        )

    def update_fn(
        updates: Any,
        state: SkipNonfiniteState,
        params: Any = None,
        *,
        value: Any = None,
        **extra: Any,
    ) -> tuple[Any, SkipNonfiniteState]:
        leaves, _ = _base.flatten(updates)
        norm = _base.global_norm(leaves, state.norm.dtype)
        # A loss of any shape as one number, which is zero or NaN.
        loss = jnp.zeros(()) if value is None else _base.zero_or_nan(jnp.asarray(value))
        before = {name: getattr(state, name) for name in _SMALL}
        skip, after = together(_settle, (norm, loss, before), ())
        arguments = _skip.extra_arguments(extra_args, value, extra)
        out, inner_state = inner.update(updates, state.inner_state, params, **arguments)
        out, inner_state = _skip.undo(skip, out, inner_state, state.inner_state)
        return out, SkipNonfiniteState(inner_state=inner_state, **after)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


_SMALL = ("count", "streak", "threshold", "nonfinite_count")


def _settle(
    inputs: tuple[jax.Array, jax.Array, dict[str, jax.Array]],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether to skip the step, and the state's numbers after it; all are scalars."""
    norm, loss, before = inputs
    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    return ~finite, {
        "count": optax.safe_increment(before["count"]),
        "streak": jnp.where(finite, 0, optax.safe_increment(before["streak"])),
        "norm": norm,
        "threshold": jnp.where(finite, norm, before["threshold"]),
        "clipped": ~finite,
        "nonfinite_count": _base.increment_where(before["nonfinite_count"], ~finite),
    }
