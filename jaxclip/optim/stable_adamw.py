"""StableAdamW: AdamW that takes shorter steps where its second moment lags behind the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _moments


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
    return _stable_adam("scale_by_stable_adam", b1, b2, eps, 0.0, None, mu_dtype)


def stable_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.99,
    eps: _base.Hyperparameter = 1e-8,
    weight_decay: _base.Hyperparameter = 1e-4,
    mask: _moments.Mask = None,
    mu_dtype: Any = None,
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
      weight_decay: λ, decoupled; multiplied by the tensor's own η, as published.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.
      mu_dtype: dtype of the first moment; default float32 (float64 for float64 parameters).

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
    core = _stable_adam("stable_adamw", b1, b2, eps, weight_decay, mask, mu_dtype)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


def _stable_adam(
    name: str,
    b1: _base.Hyperparameter,
    b2: _base.Hyperparameter,
    eps: _base.Hyperparameter,
    weight_decay: _base.Hyperparameter,
    mask: _moments.Mask,
    mu_dtype: Any,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _base.check_number(f"{name}.b1", b1, 0, below=1)
    _base.check_number(f"{name}.b2", b2, 0, below=1)
    _base.check_number(f"{name}.eps", eps, 0)
    _base.check_number(f"{name}.weight_decay", weight_decay, 0)

    def init_fn(params: Any) -> StableAdamState:
        return StableAdamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda leaf: _moments.zeros(leaf, mu_dtype), params),
            nu=jax.tree.map(_moments.zeros, params),
            **_base.initial_report((len(jax.tree.leaves(params)),), _base.statistics_dtype(params)),
        )

    def update_fn(
        updates: Any, state: StableAdamState, params: Any = None
    ) -> tuple[Any, StableAdamState]:
        leaves, treedef = _base.flatten(updates, state.norm.size)
        dtype = state.norm.dtype
        decays = _moments.decay_terms(weight_decay, mask, params, leaves, state.count, dtype)
        dtypes = _moments.update_dtypes(params, leaves)
        clock = state.count + 1 - state.nonfinite_count
        fresh1, fresh2 = (_base.complement(b, state.count, dtype) for b in (b1, b2))
        # 1 - β̂, the weight of the new gradient.
        weight1 = fresh1 / _base.bias_correction(fresh1, clock)
        weight2 = fresh2 / _base.bias_correction(fresh2, clock)
        small = _base.hyperparameter(eps, state.count, dtype)

        def step(i: int, leaf: jax.Array, mu: jax.Array, nu: jax.Array) -> _moments.Step:
            rms = _rms(_moments.aside(leaf, nu), weight2[i], small)
            keep = jnp.isfinite(rms)
            gradient = _moments.squarable(leaf, dtype)
            mu, m = _moments.store(keep, _moments.average(mu, gradient, weight1[i]), mu)
            nu, v = _moments.store(keep, _moments.average(nu, jnp.square(gradient), weight2[i]), nu)
            update = _moments.add(_moments.direction(m, v, small), decays[i])
            update = update / jnp.maximum(rms, 1.0)
            return _moments.Step(_moments.finish(keep, update, dtypes[i]), mu, nu, rms)

        moments = zip(treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.nu), strict=True)
        steps = [step(i, g, *old) for i, (g, old) in enumerate(zip(leaves, moments, strict=True))]
        norm = jnp.stack([s.norm for s in steps]) if steps else state.norm
        finite = jnp.isfinite(norm)
        new_state = StableAdamState(
            count=optax.safe_increment(state.count),
            mu=jax.tree.unflatten(treedef, [s.mu for s in steps]),
            nu=jax.tree.unflatten(treedef, [s.nu for s in steps]),
            norm=norm,
            threshold=jnp.where(finite, jnp.ones_like(norm), state.threshold),
            clipped=~(norm <= 1),
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        return jax.tree.unflatten(treedef, [s.update for s in steps]), new_state

    return optax.GradientTransformation(init_fn, update_fn)


def _rms(tensors: tuple[jax.Array, jax.Array], weight: jax.Array, eps: jax.Array) -> jax.Array:
    """Root of the mean of ``g² / max(v, ε²)``; NaN if the gradient is not finite.

    Args:
      tensors: gradient, and second moment before it.
      weight: of the new square in the second moment.
      eps: ε.
    """
    leaf, nu = tensors
    square = jnp.square(_moments.squarable(leaf, eps.dtype))
    largest = jnp.maximum(_moments.average(nu, square, weight), jnp.square(eps))
    total = _base.sum_or_nan(_base.safe_divide(square, largest, 0.0), ~jnp.isfinite(leaf))
    return jnp.sqrt(total / max(leaf.size, 1))
