"""Stable-SPAM: Adam on gradients whose elements and norms are held near their own averages."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _decay, _moments, _stable_spam_step
from jaxclip.optim._together import together


class StableSpamState(NamedTuple):
    """State of :func:`scale_by_stable_spam`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      mu: first moment m, a tree like the parameters.
      nu: second moment v, a tree like the parameters.
      maximum: average M of the largest absolute values, not bias-corrected.
      first: average a of the norms, not bias-corrected.
      second: average b of the squared norms, not bias-corrected.
      norm: largest absolute value seen in the last step, s.
      threshold: M̂ of the last step.
      clipped: bool, was any element above M̂.
      nonfinite_count: int32, number of updates with a NaN or infinite element.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mu: Any
    nu: Any
    maximum: jax.Array
    first: jax.Array
    second: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def scale_by_stable_spam(
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-8,
    mu_dtype: Any = None,
    *,
    theta: _base.Hyperparameter = 0.999,
    gamma1: _base.Hyperparameter = 0.7,
    gamma2: _base.Hyperparameter = 0.9,
    reset_interval: int | jax.Array = 1000,
) -> optax.GradientTransformation:
    r"""The direction of :func:`stable_spam`, without learning rate and weight decay.

    .. math::

      u = \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    with the moments explained there.

    State: two copies of the parameters, three numbers a tensor and the report. Cost: two reductions
    a tensor.

    Args:
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment and to that of b.
      mu_dtype: dtype of the first moment; default float32 (float64 for float64 parameters).
      theta: θ, decay of the average of largest elements.
      gamma1: decay of the average norm.
      gamma2: decay of the average squared norm.
      reset_interval: ΔT, number of updates between resets of the moments.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`StableSpamState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``reset_interval`` is a schedule; from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.scale_by_stable_spam(), optax.scale(-1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> updates, state = tx.update({"w": jnp.asarray([3.0, -4.0])}, tx.init(params), params)
      >>> [round(float(u), 6) for u in updates["w"]]
      [-0.001, 0.001]

    References:
      Huang et al., `Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam
      <https://arxiv.org/abs/2502.17055v2>`_, 2025. (Version 2: the third one under that number is
      another paper, GradientStabilizer, of which :func:`jaxclip.optim.adagn` is nearly the rule.)
    """
    decays = {"b1": b1, "b2": b2, "theta": theta, "gamma1": gamma1, "gamma2": gamma2}
    return _stable_spam("scale_by_stable_spam", decays, eps, mu_dtype, reset_interval)


def stable_spam(
    learning_rate: optax.ScalarOrSchedule,
    b1: _base.Hyperparameter = 0.9,
    b2: _base.Hyperparameter = 0.999,
    eps: _base.Hyperparameter = 1e-8,
    mu_dtype: Any = None,
    *,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
    theta: _base.Hyperparameter = 0.999,
    gamma1: _base.Hyperparameter = 0.7,
    gamma2: _base.Hyperparameter = 0.9,
    reset_interval: int | jax.Array = 1000,
) -> optax.GradientTransformation:
    r"""Adam with adaptive element clipping, adaptive norms and momentum reset.

    For every tensor, t being the number of its updates (from 1) and r that since the last reset,
    its own update included:

    1. AdaClip (:func:`jaxclip.optim.adaclip`): with :math:`s = \max |g|`,

       .. math::

         M \leftarrow \theta M + (1 - \theta) s, \quad \hat M = M / (1 - \theta^t), \quad
         g_j \leftarrow g_j \hat M / s \text{ where } |g_j| > \hat M.

    2. AdaGN (:func:`jaxclip.optim.adagn`): with :math:`n = \|g\|`,

       .. math::

         a \leftarrow \gamma_1 a + (1 - \gamma_1) n, \quad
         b \leftarrow \gamma_2 b + (1 - \gamma_2) n^2, \quad
         g \leftarrow \frac{g}{n} \cdot
           \frac{a / (1 - \gamma_1^t)}{\sqrt{b / (1 - \gamma_2^t)} + \epsilon};

       where n = 0 the averages move and g stays zero.
    3. MoRet: if t is a multiple of :math:`\Delta T`, m and v become zero and r starts again.
    4. Adam:

       .. math::

         m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
         v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
         p &\leftarrow p (1 - \mathrm{lr}\, \lambda) - \mathrm{lr}
           \frac{m / (1 - \beta_1^r)}{\sqrt{v / (1 - \beta_2^r)} + \epsilon}.

    This is the paper's rule. In the authors' code the count that a reset restarts (r) also corrects
    M, a and b, whose sums are not restarted: straight after a reset :math:`\hat M` is inflated by
    about :math:`1 / (1 - \theta)`, and AdaClip is off for hundreds of updates. Here M, a and b keep
    a count of their own (t). Neither is the optional cosine decay of the code's betas here.

    The gradient's scale is lost (step 2): a scalar, such as CLIP's ``logit_scale``, becomes its
    sign times about one. That suits Adam, but to let the size of its gradient count, give it
    another optimizer with ``optax.partition``.

    A tensor with a NaN or infinite gradient element is skipped: no update (and no weight decay),
    and its moments, averages and counts (t and r) stand still. Norms above 1e17 enter the averages
    as 1e17, for their squares to stay in float32.

    State: two copies of the parameters, three numbers a tensor and the report. Cost: two reductions
    a tensor, since the norm is that of the clipped tensor, whose bound is a maximum. Compiles in
    some twice ``optax.adamw``'s time.

    Args:
      learning_rate: a number, an array or a schedule.
      b1: β1, decay of the first moment.
      b2: β2, decay of the second moment.
      eps: ε, added to the root of the second moment and to that of b.
      mu_dtype: dtype of the first moment; default float32 (float64 for float64 parameters).
      weight_decay: λ, decoupled.
      mask: which parameters decay: a tree of bools, a prefix of one, or a function from parameters
        to it; ``None`` for all.
      theta: θ, decay of the average of largest elements (``gamma3`` in the authors' code).
      gamma1: decay of the average norm.
      gamma2: decay of the average squared norm.
      reset_interval: ΔT, number of updates between resets of the moments.

    Returns:
      An ``optax.GradientTransformation``; the first element of its state is a
      :class:`StableSpamState`, whose ``norm`` and ``threshold`` are s and M̂ of AdaClip.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``reset_interval`` is a schedule; from ``init``, a complex parameter.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.stable_spam(1e-3, theta=0.5)
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for size in (1.0, 4.0):
      ...     _, state = tx.update({"w": jnp.asarray([size, 0.5])}, state, params)
      >>> state[0].norm.tolist(), state[0].threshold.tolist(), state[0].clipped.tolist()
      ([4.0], [3.0], [True])

    References:
      Huang et al., `Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam
      <https://arxiv.org/abs/2502.17055v2>`_, 2025. (Version 2: the third one under that number is
      another paper, GradientStabilizer, of which :func:`jaxclip.optim.adagn` is nearly the rule.)
    """
    decays = {"b1": b1, "b2": b2, "theta": theta, "gamma1": gamma1, "gamma2": gamma2}
    core = _stable_spam("stable_spam", decays, eps, mu_dtype, reset_interval, weight_decay, mask)
    _base.check_number("stable_spam.learning_rate", learning_rate, 0, below=math.inf)
    return optax.chain(core, optax.scale_by_learning_rate(learning_rate))


def _stable_spam(
    name: str,
    decays: dict[str, _base.Hyperparameter],
    eps: _base.Hyperparameter,
    mu_dtype: Any,
    reset_interval: int | jax.Array,
    weight_decay: _base.Hyperparameter = 0.0,
    mask: _decay.Mask = None,
) -> optax.GradientTransformation:
    """Everything but the learning rate."""
    _moments.check(name, eps=eps, weight_decay=weight_decay, mu_dtype=mu_dtype, **decays)
    _base.integer(f"{name}.reset_interval", reset_interval, 1)

    def init_fn(params: Any) -> StableSpamState:
        _moments.refuse_complex(name, params)
        dtype = _base.statistics_dtype(params)
        shape = (len(jax.tree.leaves(params)),)
        return StableSpamState(
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(lambda leaf: _moments.zeros(leaf, mu_dtype), params),
            nu=jax.tree.map(_moments.zeros, params),
            maximum=jnp.zeros(shape, dtype),
            first=jnp.zeros(shape, dtype),
            second=jnp.zeros(shape, dtype),
            **_base.initial_report(shape, dtype),
        )

    def update_fn(
        updates: Any, state: StableSpamState, params: Any = None
    ) -> tuple[Any, StableSpamState]:
        found = _moments.tensors(updates, state, params, weight_decay, mask)
        count, dtype = state.count, state.norm.dtype
        shared = _stable_spam_step.Shared(
            *(
                _base.complement(decays[key], count, dtype)
                for key in _stable_spam_step.Shared._fields[:5]
            ),
            *(_base.hyperparameter(h, count, dtype) for h in (eps, weight_decay)),
        )
        clock = count + 1 - state.nonfinite_count
        # inject_hyperparams makes floats of integers.
        interval = jnp.asarray(reset_interval).astype(jnp.int32)
        if not found.leaves:
            return updates, state._replace(count=optax.safe_increment(count))
        before = [state.maximum, state.first, state.second, clock.astype(dtype)]
        rows: list[jax.Array] = []
        done: list[tuple[Any, ...]] = []
        order: list[int] = []
        for at, part in _moments.parts(_moments.small_as_vectors(found)):
            if len(at) == 1 < len(found.leaves):
                # A single tensor's as scalars: all such have the same kernels.
                rows = rows or _base.unpack_columns(before)
                values = list(rows[at[0]].reshape(-1, 1))
            else:
                values = _at(before, at)
            maximum, first, second, number = values
            own = _stable_spam_step.Averages(maximum, first, second, number.astype(jnp.int32))
            lists, seen = _stable_spam_step.step_all(
                part, own, shared, interval, _moments.known_positive(eps)
            )
            done.append((*lists, *seen))
            order.extend(at)
        where = np.argsort(order)
        columns = list(zip(*done, strict=True))
        out, mu, nu = (
            found.treedef.unflatten(
                tensors[i].reshape(like.shape) for i, like in zip(where, found.leaves, strict=True)
            )
            for tensors in (list(itertools.chain(*column)) for column in columns[:3])
        )
        vectors = _at([jnp.concatenate(column) for column in columns[3:]], where)
        names = ("maximum", "first", "second", "threshold", "nonfinite_count")
        kept = {name: getattr(state, name) for name in names}
        fields = together(_settle, (vectors, kept), state.norm.shape)
        new_state = StableSpamState(count=optax.safe_increment(count), mu=mu, nu=nu, **fields)
        return out, new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))


def _at(vectors: list[jax.Array], places: np.ndarray) -> list[jax.Array]:
    """Vectors ``[n]`` of one dtype with their entries at places of the order."""
    if np.array_equal(places, np.arange(vectors[0].size)):
        return vectors
    return list(_base.side_by_side(vectors).at[:, places].get(mode="promise_in_bounds"))


def _settle(inputs: tuple[list[jax.Array], dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The state's numbers after a step: averages of tensors that were not finite stay."""
    (largest, bound, maximum, first, second), before = inputs
    finite = jnp.isfinite(largest)
    new = {"maximum": maximum, "first": first, "second": second, "threshold": bound}
    return {
        **{name: jnp.where(finite, value, before[name]) for name, value in new.items()},
        "norm": largest,
        "clipped": (largest > bound) | ~finite,
        "nonfinite_count": _base.increment_where(before["nonfinite_count"], ~finite),
    }
