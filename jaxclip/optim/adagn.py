"""AdaGN of Stable-SPAM: bring each tensor's norm to what its running averages say it should be."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base


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
) -> optax.GradientTransformation:
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

    Norms above 1e17 enter the averages as 1e17, for their squares to stay in float32. A scalar
    becomes its sign times a number near one: exempt CLIP's ``logit_scale`` with ``optax.masked``
    if its gradient's size should count.

    State: two numbers a tensor and the report. Cost: one reduction a tensor.

    Args:
      gamma1: decay of the average norm.
      gamma2: decay of the average squared norm.
      eps: added to the root of the latter.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`AdagnState`.

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
      <https://arxiv.org/abs/2502.17055>`_, 2025.
    """
    _base.check_number("adagn.gamma1", gamma1, 0, below=1)
    _base.check_number("adagn.gamma2", gamma2, 0, below=1)
    _base.check_number("adagn.eps", eps, 0)

    def init_fn(params: Any) -> AdagnState:
        dtype = _base.statistics_dtype(params)
        shape = (len(jax.tree.leaves(params)),)
        return AdagnState(
            count=jnp.zeros((), jnp.int32),
            first=jnp.zeros(shape, dtype),
            second=jnp.zeros(shape, dtype),
            **_base.initial_report(shape, dtype),
        )

    def update_fn(updates: Any, state: AdagnState, params: Any = None) -> tuple[Any, AdagnState]:
        del params
        leaves, treedef = _base.flatten(updates, state.norm.size)
        dtype = state.norm.dtype
        norms = _base.tensor_norms(leaves, dtype)
        finite = jnp.isfinite(norms)
        seen = state.count + 1 - state.nonfinite_count
        first, second, target = average_norms(
            state.first,
            state.second,
            norms,
            _base.complement(gamma1, state.count, dtype),
            _base.complement(gamma2, state.count, dtype),
            _base.hyperparameter(eps, state.count, dtype),
            seen,
        )
        new_state = AdagnState(
            count=optax.safe_increment(state.count),
            first=jnp.where(finite, first, state.first),
            second=jnp.where(finite, second, state.second),
            norm=norms,
            threshold=jnp.where(finite, target, state.threshold),
            clipped=(norms > target) | ~finite,
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        factor = _base.safe_divide(target, norms, 0.0).astype(dtype)
        out = [_base.rescale(leaf, factor[i], finite[i]) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(treedef, out), new_state

    return optax.GradientTransformation(init_fn, update_fn)


def average_norms(
    first: jax.Array,
    second: jax.Array,
    norms: jax.Array,
    fresh1: jax.Array,
    fresh2: jax.Array,
    eps: jax.Array,
    seen: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """a and b after one more norm, and the norm that the tensor gets.

    Args:
      first: a before.
      second: b before.
      norms: n, the norm.
      fresh1: 1 - gamma1.
      fresh2: 1 - gamma2.
      eps: ε.
      seen: number of norms, this one included.
    """
    fed = jnp.minimum(norms, _base.LARGEST_SQUARABLE)
    first = first + fresh1 * (fed - first)
    second = second + fresh2 * (jnp.square(fed) - second)
    mean = first / _base.bias_correction(fresh1, seen)
    root = jnp.sqrt(second / _base.bias_correction(fresh2, seen))
    # Without a gradient so far, and eps = 0, this is 0 / 0.
    return first, second, _base.safe_divide(mean, root + eps, 0.0)
