"""AdaClip of Stable-SPAM: scale down elements above the average largest element of their tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper


class AdaclipState(NamedTuple):
    """State of :func:`adaclip`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      maximum: average M of the largest absolute values, not bias-corrected.
      norm: largest absolute value seen in the last step, s.
      threshold: M̂ of the last step.
      clipped: bool, was any element above M̂.
      nonfinite_count: int32, number of updates with a NaN or infinite element.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    maximum: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def adaclip(theta: _base.Hyperparameter = 0.999) -> optax.GradientTransformationExtraArgs:
    r"""Scales elements that exceed the running average of their tensor's largest element.

    For every tensor, with :math:`s = \max |g|`,

    .. math::

      M \leftarrow \theta M + (1 - \theta) s, \quad \hat M = M / (1 - \theta^t), \quad
      g_j \leftarrow g_j \hat M / s \text{ where } |g_j| > \hat M.

    Elements above :math:`\hat M` are scaled, not cut: the largest becomes :math:`\hat M`,
    others may fall below elements that were left alone. This is step 1 of
    :func:`jaxclip.optim.stable_spam`, for use with any optimizer.

    State: one number a tensor and the report. Cost: one reduction a tensor.

    Args:
      theta: θ, decay of the average.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`AdaclipState`. ``norm`` and
      ``threshold`` are absolute values of elements.

    Raises:
      ValueError: ``theta`` is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.adaclip(theta=0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 0.5], [4.0, 0.5]):
      ...     updates, state = tx.update(jnp.asarray(gradient), state)
      >>> updates.tolist(), state.threshold.tolist()
      ([3.0, 0.5], [3.0])

    References:
      Huang et al., `Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam
      <https://arxiv.org/abs/2502.17055v2>`_, 2025.
    """
    _base.check_number("adaclip.theta", theta, 0, below=1)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {"maximum": jnp.zeros(shape, dtype)}

    def rule(leaves: list[jax.Array], state: AdaclipState, now: _clipper.Context) -> _clipper.Plan:
        fresh = now.complement(theta)
        largest = _base.tensor_maxima(leaves, now.dtype)
        return _clipper.Plan(
            largest, lambda seen, before: decide(seen, before, fresh), _clipper.each(_scale_above)
        )

    def decide(largest: jax.Array, state: AdaclipState, fresh: jax.Array) -> _clipper.Decision:
        seen = state.count + 1 - state.nonfinite_count
        maximum, bound = average_maximum(
            state.maximum, largest, fresh, _base.bias_correction(fresh, seen)
        )
        clipped = largest > bound
        factor = jnp.where(clipped, _base.safe_divide(bound, largest, 1.0), 1.0)
        return _clipper.Decision(
            norm=largest,
            threshold=bound,
            clipped=clipped,
            numbers=(factor.astype(largest.dtype), bound),
            own={"maximum": maximum},
        )

    return _clipper.clipper(AdaclipState, rule, own, per_tensor=True)


def _scale_above(leaf: jax.Array, factor: jax.Array, bound: jax.Array) -> jax.Array:
    """Elements above a bound times a factor, the others as they are; zero if the factor is NaN."""
    wide = _base.widened(leaf, factor.dtype)
    scaled = wide * factor
    scaled = _base.where(jnp.abs(wide) > bound, scaled, wide.astype(scaled.dtype))
    return jax.lax.select(factor == factor, scaled, jax.lax.full_like(scaled, 0)).astype(leaf.dtype)


def average_maximum(
    maximum: jax.Array, largest: jax.Array, fresh: jax.Array, correction: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """M after one more value, and M̂.

    Args:
      maximum: M before.
      largest: s, the value.
      fresh: 1 - θ.
      correction: what M has to be divided by, from ``_base.bias_correction``.
    """
    # As a step towards the new value, so that large values do not overflow.
    maximum = maximum + fresh * (largest - maximum)
    # Not divided by it: of a quotient that is used more than once XLA makes a kernel of its own.
    return maximum, maximum * (1 / correction)
