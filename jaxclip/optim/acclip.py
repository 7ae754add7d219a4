"""ACClip: momentum, each element clipped at its own running moment of the gradient."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _decay, _moments


class AcclipState(NamedTuple):
    """State of :func:`scale_by_acclip`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      mu: momentum m, a tree like the parameters.
      nu: average of ``|g| ** alpha``, a tree like the parameters.
      norm: largest ``|m| / tau`` of the last step.
      threshold: 1, the ratio above which an element is clipped.
      clipped: bool, was any element clipped in the last step.
      nonfinite_count: int32, number of updates with a NaN or infinite element.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mu: Any
    nu: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def scale_by_acclip(
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.99,
    eps: _base.Hyperparameter = 1e-5,
    alpha: _base.Hyperparameter = 2.0,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    r"""The direction of :func:`acclip`, without learning rate and weight decay.

    .. math:: u = \min\left(\frac{\tau}{|m| + \epsilon}, 1\right) m

    with m and τ as explained there.

    State: two copies of the parameters and the report. Cost: one reduction a tensor.

    Args:
      b1: β1, decay of the momentum.
      b2: β2, decay of the average of ``|g| ** alpha``.
      eps: ε, added to the momentum's magnitude.
      alpha: α, from 1 to 2: which moment of the gradient's noise is taken to exist.
      mu_dtype: dtype of the momentum; default float32 (float64 for float64 parameters).

    Returns:
      An ``optax.GradientTransformation`` with state :class:`AcclipState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.scale_by_acclip(alpha=1.0, eps=0.0)
      >>> params = jnp.ones(2)
      >>> updates, state = tx.update(jnp.asarray([1.0, -2.0]), tx.init(params), params)
      >>> [round(float(u), 6) for u in updates]
      [0.01, -0.02]

    References:
      Zhang et al., `Why are Adaptive Methods Good for Attention Models?
      <https://arxiv.org/abs/1912.03194>`_, 2020.
    """
    return _acclip("scale_by_acclip", (b1, b2), eps, alpha, mu_dtype)


def acclip(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.99,
    eps: _base.Hyperparameter = 1e-5,
    alpha: _base.Hyperparameter = 2.0,
    mu_dtype: Any = None,
    *,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    r"""SGD with momentum whose elements are clipped, each at a running moment of its own.

    With heavy-tailed noise, which gradients of attention have, SGD needs clipping to converge;
    this finds the thresholds by itself:

    .. math::

      m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
      \tau^\alpha \leftarrow \beta_2 \tau^\alpha + (1 - \beta_2) |g|^\alpha, \\
      p &\leftarrow p - \mathrm{lr} \left(
        \min\left(\frac{\tau}{|m| + \epsilon}, 1\right) m + \lambda p \right).

    It is no Adam: the step keeps the gradient's scale, so learning rates are those of SGD, and no
    averages are corrected for bias, as published: in the first update m is 0.1 g, and τ is 0.1 |g|
    for α = 2 but 0.01 |g| for α = 1. It is for noise whose tails are always heavy; a single spike
    of k times the usual size raises its own threshold and comes out at 0.1 k with α = 2, as without
    clipping, and at 0.01 k with α = 1.

    What is far below ``eps`` in size moves by τ / ε of itself: choose ``eps`` below your gradients'
    elements. Defaults are those of the authors' code; whether the paper's tables were made with
    α = 1 or 2 was not checked. Weight decay is decoupled here, in their code it is added to the
    gradient; an option of theirs to divide by Adam's root as well is left out.

    A tensor with a NaN or infinite gradient element is skipped: no update (and no weight decay),
    and its moments stand still. Elements beyond 1e17 count as 1e17.

    State: two copies of the parameters and the report. Cost: one reduction a tensor.

    Args:
      learning_rate: a number, an array or a schedule.
      b1: β1, decay of the momentum.
      b2: β2, decay of the average of ``|g| ** alpha``.
      eps: ε, added to the momentum's magnitude.
      alpha: α, from 1 to 2: which moment of the gradient's noise is taken to exist.
      mu_dtype: dtype of the momentum; default float32 (float64 for float64 parameters).
      weight_decay: λ, decoupled.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is an
      :class:`AcclipState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.acclip(0.1)
      >>> params = jnp.ones(2)
      >>> state = tx.init(params)
      >>> for size in (1.0, 1.0, 1000.0):
      ...     updates, state = tx.update(jnp.asarray([size, 1.0]), state, params)
      >>> [round(float(u), 4) for u in updates], state[0].clipped.tolist()
      ([-10.0, -0.0172], [True])

    References:
      Zhang et al., `Why are Adaptive Methods Good for Attention Models?
      <https://arxiv.org/abs/1912.03194>`_, 2020; code: github.com/rivercold/ACClip-Pytorch.
    """
    core = _acclip("acclip", (b1, b2), eps, alpha, mu_dtype, weight_decay, mask)
    _base.check_number("acclip.learning_rate", learning_rate, 0, below=math.inf)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


def _acclip(
    name: str,
    b: tuple[_base.Hyperparameter, _base.Hyperparameter],
    eps: _base.Hyperparameter,
    alpha: _base.Hyperparameter,
    mu_dtype: Any,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _moments.check(name, b1=b[0], b2=b[1], eps=eps, weight_decay=weight_decay, mu_dtype=mu_dtype)
    _base.check_number(f"{name}.alpha", alpha, 1, 2)

    def init_fn(params: Any) -> AcclipState:
        _moments.refuse_complex(name, params)
        return AcclipState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda leaf: _moments.zeros(leaf, mu_dtype), params),
            nu=jax.tree.map(_moments.zeros, params),
            **_base.initial_report((len(jax.tree.leaves(params)),), _base.statistics_dtype(params)),
        )

    def update_fn(updates: Any, state: AcclipState, params: Any = None) -> tuple[Any, AcclipState]:
        found = _moments.tensors(updates, state, params, weight_decay, mask)
        count, dtype = state.count, state.norm.dtype
        known = float(alpha) if isinstance(alpha, (int, float)) else None
        shared = _Shared(
            fresh1=_base.complement(b[0], count, dtype),
            fresh2=_base.complement(b[1], count, dtype),
            eps=_base.hyperparameter(eps, count, dtype),
            rate=_base.hyperparameter(weight_decay, count, dtype),
            alpha=_base.hyperparameter(alpha, count, dtype),
        )
        step = functools.partial(_step, shared=shared, known=known)
        out, moments, (ratio, flag) = _moments.each(step, found, state)
        new_state = AcclipState(
            count=optax.safe_increment(count),
            **moments,
            **_moments.report(
                state,
                (ratio, flag),
                lambda seen: (jnp.where(seen[1] > 0, jnp.nan, seen[0]), jnp.ones_like(seen[0])),
            ),
        )
        return out, new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))


class _Shared(NamedTuple):
    """Numbers that are the same for all tensors, scalars of the statistics' dtype.

    Attributes:
      fresh1: 1 - β1.
      fresh2: 1 - β2.
      eps: ε.
      rate: λ.
      alpha: α.
    """

    fresh1: jax.Array
    fresh2: jax.Array
    eps: jax.Array
    rate: jax.Array
    alpha: jax.Array


@functools.partial(jax.jit, static_argnames=("dtype", "known"))
def _step(
    leaf: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    param: jax.Array | None,
    *,
    shared: _Shared,
    known: float | None,
    dtype: Any,
) -> _moments.Step:
    """One tensor's step.

    Args:
      leaf: gradient.
      mu: momentum.
      nu: average of ``|g| ** alpha``.
      param: the parameter if it decays.
      shared: what is the same for all.
      known: α, if it is a plain number: there are faster ways than a power to 1 and 2.
      dtype: of the update.
    """
    ratio, flag = _largest_ratio(_moments.aside(leaf, mu, nu), shared, known)
    keep = flag == 0
    new_mu, new_nu = _averages(leaf, mu, nu, shared, known)
    mu, m = _moments.store(keep, new_mu, mu)
    nu, v = _moments.store(keep, new_nu, nu)
    tau, size = _root(v, shared.alpha, known), jnp.abs(m)
    # Without a gradient so far all three are zero.
    share = jnp.minimum(_base.safe_divide(tau, size + shared.eps, 1.0), 1.0)
    update = _decay.add_decay(share * m, shared.rate, param)
    return _moments.Step(_moments.finish(keep, update, dtype), mu, nu, (ratio, flag))


def _averages(
    leaf: jax.Array, mu: jax.Array, nu: jax.Array, shared: _Shared, known: float | None
) -> tuple[jax.Array, jax.Array]:
    """Both moments after one more gradient; arguments as for :func:`_step`."""
    gradient = _moments.squarable(leaf, shared.eps.dtype)
    power = jnp.square(gradient) if known == 2 else jnp.abs(gradient)
    if known not in (1, 2):
        # Exact for two: a scheduled α may be that.
        power = jnp.where(shared.alpha == 2, jnp.square(power), power**shared.alpha)
    mu = _moments.average(mu, gradient, shared.fresh1)
    return mu, _moments.average(nu, power, shared.fresh2)


def _root(v: jax.Array, alpha: jax.Array, known: float | None) -> jax.Array:
    """``v ** (1 / alpha)``."""
    if known in (1, 2):
        return v if known == 1 else _moments.square_root(v)
    # At 0 the power's derivative would be infinite, and the gradient's NaN.
    nonzero = v != 0
    return _base.where(nonzero, _base.where(nonzero, v, 1.0) ** (1 / alpha), 0.0)


def _largest_ratio(
    tensors: tuple[jax.Array, jax.Array, jax.Array], shared: _Shared, known: float | None
) -> tuple[jax.Array, jax.Array]:
    """Largest ``|m| / tau``, a finite number, and 0 if the gradient is finite.

    Args:
      tensors: gradient and both moments before it; the others as for :func:`_step`.
    """
    m, v = _averages(*tensors, shared, known)
    ratio = _base.safe_divide(jnp.abs(m), _root(v, shared.alpha, known), 0.0)
    largest = jnp.minimum(ratio, jnp.finfo(ratio.dtype).max)
    return _base.max_and_flag(largest, ~jnp.isfinite(tensors[0]))
