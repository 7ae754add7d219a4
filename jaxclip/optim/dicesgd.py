"""DiceSGD: private SGD whose clipping bias is fed back until it is gone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _moments, _per_example


class DicesgdState(NamedTuple):
    """State of :func:`dicesgd`; all scalars but the error.

    Attributes:
      count: int32, number of updates.
      error: e, what clipping has held back so far, a tree like the parameters, float32 at least.
      norm: largest norm of an example's gradient in the last step. Not private.
      threshold: C1 of the last step.
      clipped: bool, was any example's gradient clipped. Not private.
      nonfinite_count: int32, number of updates with a NaN or infinite norm of an example.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    error: Any
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def dicesgd(
    learning_rate: _base.Hyperparameter,
    clip_gradient: _base.Hyperparameter,
    clip_error: _base.Hyperparameter,
    noise_multiplier: _base.Hyperparameter,
    seed: int | jax.Array,
) -> optax.GradientTransformation:
    r"""SGD on clipped per-example gradients, with noise and feedback of what was clipped off.

    With :math:`\mathrm{clip}(x, C) = \min(1, C / \|x\|) x` over the whole tree, B examples of
    gradient :math:`g_i` and :math:`w \sim N(0, I)`,

    .. math::

      v &= \tfrac1B \textstyle\sum_i \mathrm{clip}(g_i, C_1) + \mathrm{clip}(e, C_2), \\
      \theta &\leftarrow \theta - \eta \Big(v
        + \frac{\sigma C_1}{B} \sqrt{1 + 2 C_2 / C_1} \; w\Big), \\
      e &\leftarrow e + \tfrac1B \textstyle\sum_i g_i - v, \qquad e_0 = 0.

    Plain DP-SGD (``optax.contrib.dpsgd``) converges to a biased point because clipping changes the
    mean; here what it takes away enters later steps. The error is hidden state: it must not leave
    the training process.

    The noise is that of the authors' code: σ is what an accountant of DP-SGD (dp-accounting,
    JAX-Privacy) says for the budget, and the root pays for the error that is fed back: at C2 = C1
    the noise is :math:`\sqrt 3` times that of DP-SGD. They ask the accountant for
    :math:`\lfloor 1 + \ln E \rfloor` times as many epochs as the E that they run; do so, too. What
    this adds up to is the claim of the paper's Rényi analysis, not of the accountant. Two things
    are the paper's here and not the code's: e is the error of the mean over examples (the code
    clips and feeds back that of the sum, so that its C2 bounds B times as much), and what was fed
    back leaves e entirely.

    ``update`` wants per-example gradients, each tensor ``[B, ...]`` (``jax.vmap(jax.grad(loss),
    in_axes=(None, 0))``), so it stands first in a chain and not within ``optax.MultiSteps``. A step
    with a NaN or infinite norm of an example gives a zero update, without noise, and leaves the
    error as it was.

    State: one copy of the parameters, float32, and the report. Cost: one reduction over the
    per-example gradients and one over the error.

    Args:
      learning_rate: η.
      clip_gradient: C1, bound on the norm of each example's gradient.
      clip_error: C2, bound on the norm of the error fed back; the paper wants it at least C1.
      noise_multiplier: σ, as an accountant of DP-SGD gives it.
      seed: of the noise, which is a function of it and the number of the step; an integer or a key
        (``jax.random.key``). Who knows it can take the noise away: draw it, from ``secrets`` say,
        and tell nobody.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`DicesgdState`.

    Raises:
      ValueError: a number out of its range, no seed; from ``update``, gradients without an axis of
        examples.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.dicesgd(
      ...     1.0, clip_gradient=1.0, clip_error=1.0, noise_multiplier=0.0, seed=0
      ... )
      >>> state = tx.init(jnp.zeros(1))
      >>> for per_example in ([[4.0], [0.5]], [[0.0], [0.0]]):
      ...     updates, state = tx.update(jnp.asarray(per_example), state)
      ...     print(updates.tolist(), state.error.tolist())
      [-0.75] [1.5]
      [-1.0] [0.5]

    References:
      Zhang et al., `Differentially Private SGD Without Clipping Bias: An Error-Feedback Approach
      <https://arxiv.org/abs/2311.14632>`_, 2023.
    """
    _base.check_number("dicesgd.learning_rate", learning_rate, 0, below=math.inf)
    _base.check_number("dicesgd.clip_gradient", clip_gradient, above=0)
    _base.check_number("dicesgd.clip_error", clip_error, above=0)
    _base.check_number("dicesgd.noise_multiplier", noise_multiplier, 0, below=math.inf)
    _per_example.check_seed("dicesgd", seed)

    def init_fn(params: Any) -> DicesgdState:
        return DicesgdState(
            count=jnp.zeros((), jnp.int32),
            error=jax.tree.map(_base.zeros_like_wide, params),
            **_base.initial_report((), _base.statistics_dtype(params)),
        )

    def update_fn(
        updates: Any, state: DicesgdState, params: Any = None
    ) -> tuple[Any, DicesgdState]:
        leaves, treedef = _base.flatten(updates)
        dtypes = _moments.update_dtypes(params, leaves)
        errors = _base.matching(treedef, [leaf.shape[1:] for leaf in leaves], state.error)
        dtype = state.norm.dtype

        def value(hyperparameter: _base.Hyperparameter) -> jax.Array:
            return _base.hyperparameter(hyperparameter, state.count, dtype)

        bound, error_bound = value(clip_gradient), value(clip_error)
        norms = _per_example.norms(leaves, dtype)
        largest = jnp.max(norms, initial=0.0) if leaves else jnp.zeros((), dtype)
        finite = jnp.isfinite(largest)
        factors = _per_example.clip_factors(norms, bound)
        error_norm = _base.global_norm(errors, dtype)
        error_factor = _per_example.clip_factors(error_norm, error_bound)

        deviation = value(noise_multiplier) * bound * jnp.sqrt(1 + 2 * error_bound / bound)
        scale = deviation / _per_example.number_of_examples(leaves)
        noises = [jnp.zeros((), dtype)] * len(leaves)
        if _per_example.is_noisy(noise_multiplier):
            noises = _per_example.normal_like(leaves, seed, state.count)
        out, new_errors = [], []
        for leaf, error, noise, out_dtype in zip(leaves, errors, noises, dtypes, strict=True):
            fed_back = jnp.where(finite, error * error_factor, 0)
            direction = _per_example.weighted_mean(leaf, factors, finite) + fed_back
            held_back = _per_example.weighted_mean(leaf, 1 - factors, finite) - fed_back
            step = -value(learning_rate) * (direction + scale * noise)
            out.append(_moments.finish(finite, step, out_dtype))
            new_errors.append((error + held_back).astype(error.dtype))
        new_state = DicesgdState(
            count=optax.safe_increment(state.count),
            error=jax.tree.unflatten(treedef, new_errors),
            norm=largest,
            threshold=jnp.where(finite, bound, state.threshold),
            clipped=~(largest <= bound),
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        return jax.tree.unflatten(treedef, out), new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))
