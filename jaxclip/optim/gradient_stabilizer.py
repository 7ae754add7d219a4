"""GradientStabilizer: keep each tensor's direction, take its norm from running statistics."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper
from jaxclip.optim.adagn import average_norms


class GradientStabilizerState(NamedTuple):
    """State of :func:`gradient_stabilizer`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      first: average a of the norms, not bias-corrected.
      second: average b of the squared norms, not bias-corrected.
      seen: int32, number of norms in the averages.
      norm: norm seen in the last step, n.
      threshold: norm that the tensor was given in the last step.
      clipped: bool, was that smaller than the norm seen.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    first: jax.Array
    second: jax.Array
    seen: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def gradient_stabilizer(
    gamma1: _base.Hyperparameter = 0.6,
    gamma2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-12,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each tensor the mean of its norms over the root of their mean square.

    For every tensor with a norm :math:`n = \|g\| > 0`,

    .. math::

      a \leftarrow \gamma_1 a + (1 - \gamma_1) n, \quad
      b \leftarrow \gamma_2 b + (1 - \gamma_2) n^2, \quad
      g \leftarrow \frac{g}{n} \cdot \frac{\hat a}{\sqrt{\hat b} + \epsilon},

    with the usual bias corrections :math:`\hat a, \hat b`. As :func:`jaxclip.optim.adagn` it makes
    norms of about one, so it is for Adam and its like. The two differ

    * in the decays: AdaGN has 0.7 and 0.9, the authors' code of GradientStabilizer 0.6 and 0.999;
    * in what a gradient of exactly zero does: here it enters no average (a layer that is silent
      for some steps comes back as it went), in AdaGN it is a norm of zero.

    However large a spike is, after a long time of equal norms its norm comes out as at most

    .. math:: \sqrt{\gamma_1^2 / \gamma_2 + (1 - \gamma_1)^2 / (1 - \gamma_2)},

    which is 1.2 for AdaGN's decays but 12.7 for these: the published defaults let a spike through
    at up to 12.7 times the usual norm, and then hold the tensor's norm down for about
    :math:`1 / (1 - \gamma_2)` updates. A smaller ``gamma2`` is the more careful choice.

    The rule is that of the authors' code, which also is where the defaults are from.
    Norms above 1e17 enter the averages as 1e17, for their squares to stay in float32. A scalar
    becomes its sign times a number near one: exempt CLIP's ``logit_scale`` with ``optax.masked``.

    State: three numbers a tensor and the report. Cost: one reduction a tensor.

    Args:
      gamma1: decay of the average norm.
      gamma2: decay of the average squared norm.
      eps: added to the root of the latter.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`GradientStabilizerState`.

    Raises:
      ValueError: a number out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.gradient_stabilizer(gamma2=0.9)
      >>> state = tx.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = tx.update(jnp.asarray([3.0 * size, 4.0 * size]), state)
      >>> state.norm.tolist(), [round(float(u), 3) for u in updates]
      ([500.0], [0.509, 0.678])

    References:
      Huang et al., `GradientStabilizer: Fix the Norm, Not the Gradient
      <https://arxiv.org/abs/2502.17055v3>`_, 2026; code:
      github.com/TianjinYellow/GradientStabilizer.
    """
    _base.check_number("gradient_stabilizer.gamma1", gamma1, 0, below=1)
    _base.check_number("gradient_stabilizer.gamma2", gamma2, 0, below=1)
    _base.check_number("gradient_stabilizer.eps", eps, 0, below=math.inf)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {
            "first": jnp.zeros(shape, dtype),
            "second": jnp.zeros(shape, dtype),
            "seen": jnp.zeros(shape, jnp.int32),
        }

    def rule(
        leaves: list[jax.Array], state: GradientStabilizerState, now: _clipper.Context
    ) -> _clipper.Plan:
        values = (now.complement(gamma1), now.complement(gamma2), now.value(eps))
        norms = _base.tensor_norms(leaves, now.dtype)
        return _clipper.Plan(
            norms, lambda seen, before: decide(seen, before, values), _clipper.scale
        )

    def decide(
        norms: jax.Array,
        state: GradientStabilizerState,
        values: tuple[jax.Array, jax.Array, jax.Array],
    ) -> _clipper.Decision:
        present = norms > 0
        seen = _base.increment_where(state.seen, present)
        *fresh, own_eps = values
        corrections = [_base.bias_correction(part, jnp.maximum(seen, 1)) for part in fresh]
        first, second, target = average_norms(
            state.first, state.second, norms, fresh, own_eps, corrections
        )
        # A silent tensor has no norm to be given.
        target = jnp.where(present, target, 0.0).astype(norms.dtype)
        factor = _base.safe_divide(target, norms, 0.0).astype(norms.dtype)
        return _clipper.Decision(
            norm=norms,
            threshold=target,
            clipped=norms > target,
            numbers=(factor,),
            own={
                "first": jnp.where(present, first, state.first),
                "second": jnp.where(present, second, state.second),
                "seen": seen,
            },
        )

    return _clipper.clipper(GradientStabilizerState, rule, own, per_tensor=True)
