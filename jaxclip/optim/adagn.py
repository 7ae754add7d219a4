"""AdaGN of Stable-SPAM: give each tensor the norm its averages say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper


class AdagnState(NamedTuple):
    """State of :func:`adagn`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      first: average a of the norms, not bias-corrected.
      second: average b of the squared norms, not bias-corrected.
      norm: norm seen in the last step, n.
      threshold: norm that the tensor was given in the last step.
      clipped: bool, was that smaller than the norm seen.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    first: jax.Array
    second: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def adagn(
    gamma1: _base.Hyperparameter = 0.7,
    gamma2: _base.Hyperparameter = 0.9,
    eps: _base.Hyperparameter = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Normalises each tensor and gives it the norm of an "Adam of its norms".

    For every tensor, with :math:`n = \|g\|`,

    .. math::

      a \leftarrow \gamma_1 a + (1 - \gamma_1) n, \quad
      b \leftarrow \gamma_2 b + (1 - \gamma_2) n^2, \quad
      g \leftarrow \frac{g}{n} \cdot \frac{\hat a}{\sqrt{\hat b} + \epsilon},

    with :math:`\hat a = a / (1 - \gamma_1^t)`, :math:`\hat b = b / (1 - \gamma_2^t)`. Where
    :math:`n = 0` the averages move and the gradient stays zero. The norm that comes out is about
    one whatever the gradient's scale, so this only suits optimizers that do not care for the scale
    (Adam and its like) and makes small norms larger, too. This is step 2 of
    :func:`jaxclip.optim.stable_spam`.

    GradientStabilizer, version 3 of the arXiv number below, is nearly the same rule:
    :func:`jaxclip.optim.gradient_stabilizer` says how they differ. Stable-SPAM is version 2.

    Norms above 1e17 enter the averages as 1e17, for their squares to stay in float32. A scalar
    becomes its sign times a number near one: exempt CLIP's ``logit_scale`` with ``optax.masked``
    if its gradient's size should count.

    State: two numbers a tensor and the report. Cost: one reduction a tensor.

    Args:
      gamma1: decay of the average norm.
      gamma2: decay of the average squared norm.
      eps: added to the root of the latter.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`AdagnState`.

    Raises:
      ValueError: a number out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.adagn()
      >>> gradient = jnp.asarray([30.0, 40.0])
      >>> updates, state = tx.update(gradient, tx.init(gradient))
      >>> [round(float(u), 6) for u in updates], state.norm.tolist()
      ([0.6, 0.8], [50.0])

    References:
      Huang et al., `Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam
      <https://arxiv.org/abs/2502.17055v2>`_, 2025.
    """
    _base.check_number("adagn.gamma1", gamma1, 0, below=1)
    _base.check_number("adagn.gamma2", gamma2, 0, below=1)
    _base.check_number("adagn.eps", eps, 0, below=math.inf)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {"first": jnp.zeros(shape, dtype), "second": jnp.zeros(shape, dtype)}

    # With an epsilon, norms that small count for nothing.
    exact_small = isinstance(eps, (int, float)) and eps == 0

    def rule(leaves: list[jax.Array], state: AdagnState, now: _clipper.Context) -> _clipper.Plan:
        norms = _base.tensor_norms(leaves, now.dtype, exact_small=exact_small)
        values = (now.complement(gamma1), now.complement(gamma2), now.value(eps))
        return _clipper.Plan(
            norms, lambda seen, before: decide(seen, before, values), _clipper.scale
        )

    def decide(
        norms: jax.Array, state: AdagnState, values: tuple[jax.Array, jax.Array, jax.Array]
    ) -> _clipper.Decision:
        *fresh, own_eps = values
        clock = state.count + 1 - state.nonfinite_count
        corrections = [_base.bias_correction(part, clock) for part in fresh]
        first, second, target = average_norms(
            state.first, state.second, norms, fresh, own_eps, corrections
        )
        factor = _base.safe_divide(target, norms, 0.0).astype(norms.dtype)
        return _clipper.Decision(
            norm=norms,
            threshold=target,
            clipped=norms > target,
            numbers=(factor,),
            own={"first": first, "second": second},
        )

    return _clipper.clipper(AdagnState, rule, own, per_tensor=True)


def average_norms(
    first: jax.Array,
    second: jax.Array,
    norms: jax.Array,
    fresh: Sequence[jax.Array],
    eps: jax.Array,
    corrections: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """a and b after one more norm, and the norm that the tensor gets.

    Args:
      first: a before.
      second: b before.
      norms: n, the norm.
      fresh: 1 - gamma1 and 1 - gamma2.
      eps: ε.
      corrections: what a and b have to be divided by, from ``_base.bias_correction``.
    """
    fed = jnp.minimum(norms, _base.LARGEST_SQUARABLE)
    first = first + fresh[0] * (fed - first)
    second = second + fresh[1] * (jnp.square(fed) - second)
    # Not divided by it: of a quotient that is used more than once XLA makes a kernel of its own.
    mean = first * (1 / corrections[0])
    root = jnp.sqrt(second / corrections[1])
    # Norms below 1e-19 have squares of zero: with eps = 0 their ratio is that of equal norms.
    ratio = jnp.where(mean > 0, 1.0, 0.0)
    nonzero = root + eps > 0
    return first, second, jnp.where(nonzero, mean / jnp.where(nonzero, root + eps, 1.0), ratio)
