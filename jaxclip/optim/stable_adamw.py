"""StableAdamW: AdamW that takes shorter steps where its second moment lags behind the gradient."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _decay, _moments
from jaxclip.optim._norms import short_axes
from jaxclip.optim._together import together


class StableAdamState(NamedTuple):
    """State of :func:`scale_by_stable_adam`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      mu: first moment m, a tree like the parameters.
      nu: second moment v, a tree like the parameters.
      norm: RMS of the last step.
      threshold: 1, the RMS above which steps are shortened.
      clipped: bool, was the last step shortened.
      nonfinite_count: int32, number of updates with a NaN or infinite element.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mu: Any
    nu: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def scale_by_stable_adam(
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.99,
    eps: _base.Hyperparameter = 1e-8,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    r"""The direction of :func:`stable_adamw`, without learning rate and weight decay.

    .. math::

      u = \frac{m}{\sqrt v + \epsilon} \Big/ \max(1, \mathrm{RMS})

    with the moments and the RMS explained there.

    State: two copies of the parameters and the report. Cost: one reduction a tensor.

    Args:
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment.
      mu_dtype: dtype of the first moment; default float32 (float64 for float64 parameters).

    Returns:
      An ``optax.GradientTransformation`` with state :class:`StableAdamState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.scale_by_stable_adam(), optax.scale(-1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> updates, state = tx.update({"w": jnp.asarray([3.0, -4.0])}, tx.init(params), params)
      >>> [round(float(u), 6) for u in updates["w"]]
      [-0.001, 0.001]

    References:
      Wortsman et al., `Stable and low-precision training for large-scale vision-language models
      <https://arxiv.org/abs/2304.13013>`_, 2023.
    """
    return _stable_adam("scale_by_stable_adam", b1, b2, eps, mu_dtype)


def stable_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.99,
    eps: _base.Hyperparameter = 1e-8,
    mu_dtype: Any = None,
    *,
    weight_decay: _base.Hyperparameter = 1e-4,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    r"""AdamW with AdaFactor's update clipping; the published baseline for CLIP.

    Loss spikes of CLIP follow one to eight updates after the second moment of the patch embedding
    under-estimates its squared gradient. So every tensor divides its learning rate by how much it
    does. For every tensor, t counting from 1,

    .. math::

      \hat\beta_i &= \beta_i \frac{1 - \beta_i^{t-1}}{1 - \beta_i^t}, \\
      m &\leftarrow \hat\beta_1 m + (1 - \hat\beta_1) g, \qquad
      v \leftarrow \hat\beta_2 v + (1 - \hat\beta_2) g^2, \\
      \mathrm{RMS} &= \sqrt{\mathrm{mean}\,(g^2 / \max(v, \epsilon^2))}, \qquad
      \eta = \mathrm{lr} / \max(1, \mathrm{RMS}), \\
      p &\leftarrow p - \eta \left(\frac{m}{\sqrt v + \epsilon} + \lambda p\right).

    The debiased :math:`\hat\beta` make m and v averages without bias, as Adam's corrections do.
    The RMS is about one for a gradient of the usual size, up to :math:`1 / \sqrt{1 - \hat\beta_2}`
    for a spike. It looks at squares only: a single scalar such as CLIP's ``logit_scale`` is safe.

    A tensor with a NaN or infinite gradient element is skipped: no update (and no weight decay),
    and its moments and clock stand still. Elements beyond 1e17 count as 1e17, for their squares to
    stay in float32.

    State: two copies of the parameters and the report. Cost: one reduction a tensor, over gradient
    and second moment.

    Args:
      learning_rate: a number, an array or a schedule.
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment; 0.99 in the authors' code, less in their best CLIP runs.
      eps: ε, added to the root of the second moment.
      mu_dtype: dtype of the first moment; default float32 (float64 for float64 parameters).
      weight_decay: λ, decoupled; multiplied by the tensor's own η, as published.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is a
      :class:`StableAdamState`, whose ``norm`` is the RMS and ``threshold`` is 1.

    Raises:
      ValueError: a number out of its range.
      TypeError: from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.stable_adamw(1e-3, weight_decay=0.2, mask={"kernel": True, "bias": False})
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for size in (1.0, 1.0, 30.0):
      ...     gradients = {"kernel": size * jnp.ones((2, 2)), "bias": jnp.ones(2)}
      ...     updates, state = tx.update(gradients, state, params)
      >>> [round(float(x), 3) for x in state[0].norm], state[0].clipped.tolist()
      ([1.0, 1.722], [False, True])

    References:
      Wortsman et al., `Stable and low-precision training for large-scale vision-language models
      <https://arxiv.org/abs/2304.13013>`_, 2023.
    """
    core = _stable_adam("stable_adamw", b1, b2, eps, mu_dtype, weight_decay, mask)
    _base.check_number("stable_adamw.learning_rate", learning_rate, 0, below=math.inf)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


def _stable_adam(
    name: str,
    b1: _base.Hyperparameter,
    b2: _base.Hyperparameter,
    eps: _base.Hyperparameter,
    mu_dtype: Any,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _moments.check(name, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mu_dtype=mu_dtype)

    def init_fn(params: Any) -> StableAdamState:
        _moments.refuse_complex(name, params)
        return StableAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda leaf: _moments.zeros(leaf, mu_dtype), params),
            nu=jax.tree.map(_moments.zeros, params),
            **_base.initial_report((len(jax.tree.leaves(params)),), _base.statistics_dtype(params)),
        )

    def update_fn(
        updates: Any, state: StableAdamState, params: Any = None
    ) -> tuple[Any, StableAdamState]:
        found = _moments.tensors(updates, state, params, weight_decay, mask)
        count, dtype = state.count, state.norm.dtype
        small, rate = (_base.hyperparameter(h, count, dtype) for h in (eps, weight_decay))
        fresh = [_base.complement(b, count, dtype) for b in (b1, b2)]

        def weights_of(nonfinite_count: jax.Array) -> list[jax.Array]:
            """1 - β̂, the weight of the new gradient, for both moments."""
            clock = count + 1 - nonfinite_count
            return [f / _base.bias_correction(f, clock) for f in fresh]

        weights = together(weights_of, state.nonfinite_count, state.norm.shape)
        # Not as a constant in the kernels, which would then be others for every size.
        share = jnp.asarray([1 / max(leaf.size, 1) for leaf in found.leaves], dtype)
        step = functools.partial(_step, eps=small, rate=rate, positive=_moments.known_positive(eps))
        numbers = [*weights, share]
        out, moments, seen = _moments.each(step, found, state, numbers)
        new_state = StableAdamState(
            count=optax.safe_increment(count),
            **moments,
            **_moments.report(
                state,
                (seen[0], share),
                lambda seen: (jnp.sqrt(seen[0] * seen[1]), jnp.ones_like(seen[0])),
            ),
        )
        return out, new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))


@functools.partial(jax.jit, static_argnames=("dtype", "positive"))
def _step(
    leaf: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    numbers: jax.Array,
    *,
    eps: jax.Array,
    rate: jax.Array,
    dtype: Any,
    positive: bool,
) -> _moments.Step:
    """One tensor's step.

    Args:
      leaf: gradient.
      mu: first moment.
      nu: second moment.
      param: the parameter if it decays.
      numbers: ``[3]``: weights of the new gradient in the moments, and 1 / number of elements.
      eps: ε.
      rate: λ.
      dtype: of the update.
      positive: whether ε is known to be above zero.
    """
    total = _ratios(_moments.aside(leaf, nu), numbers[1], eps, positive)
    # NaN if the total is: one number for the kernels instead of two.
    shorter = 1 / jnp.maximum(_moments.square_root(total * numbers[2]), 1.0)
    keep = shorter == shorter
    gradient = _moments.squarable(leaf, eps.dtype)
    mu, m = _moments.store(keep, _moments.average(mu, gradient, numbers[0]), mu)
    nu, v = _moments.store(keep, _moments.average(nu, jnp.square(gradient), numbers[1]), nu)
    update = _decay.add_decay(_moments.direction(m, v, eps, positive), rate, param)
    return _moments.Step(_moments.finish(keep, update * shorter, dtype), mu, nu, (total,))


def _ratios(
    tensors: tuple[jax.Array, jax.Array], weight: jax.Array, eps: jax.Array, positive: bool
) -> jax.Array:
    """Sum of ``g² / max(v, ε²)``; NaN if the gradient is not finite.

    Args:
      tensors: gradient, and second moment before it.
      weight: of the new square in the second moment.
      eps: ε.
      positive: whether that is known to be above zero.
    """
    leaf, nu = map(short_axes, tensors)
    square = jnp.square(_moments.squarable(leaf, eps.dtype))
    largest = jnp.maximum(_moments.average(nu, square, weight), jnp.square(eps))
    ratio = square / largest if positive else _base.safe_divide(square, largest, 0.0)
    return _base.sum_or_nan(ratio, ~jnp.isfinite(leaf))
