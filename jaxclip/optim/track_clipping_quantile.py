"""Private clipping whose norm tracks a quantile of the examples' gradient norms."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _per_example


class TrackClippingQuantileState(NamedTuple):
    """State of :func:`track_clipping_quantile`; all scalars.

    Attributes:
      count: int32, number of updates.
      clip_norm: C, the bound of the next step. Private (as much as the noise makes it).
      fraction: b̄, noisy share of examples under C in the last step. Private.
      norm: largest norm of an example's gradient in the last step. Not private.
      threshold: C of the last step. Private.
      clipped: bool, was any example's gradient clipped. Not private.
      nonfinite_count: int32, number of updates with a NaN or infinite norm of an example.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    clip_norm: jax.Array
    fraction: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def track_clipping_quantile(
    target: _base.Hyperparameter = 0.5,
    adaptation_rate: _base.Hyperparameter = 0.2,
    noise_multiplier: _base.Hyperparameter = 0.0,
    seed: int | jax.Array | None = None,
    initial_norm: float = 0.1,
    *,
    learning_rate: _base.Hyperparameter | None = None,
) -> optax.GradientTransformation:
    r"""Averages clipped per-example gradients; the bound follows a quantile of their norms.

    With B examples of gradient :math:`g_i`, :math:`w \sim N(0, I)` and :math:`u \sim N(0, 1)`,

    .. math::

      \hat g &= \tfrac1B \Big( \textstyle\sum_i \min(1, C / \|g_i\|) \, g_i
        + z_\Delta C w \Big), \\
      \bar b &= \tfrac1B \Big( \textstyle\sum_i 1[\|g_i\| \le C] + \sigma_b u \Big), \qquad
      C \leftarrow C \exp(-\eta (\bar b - \gamma)).

    As the authors recommend, :math:`\sigma_b = B / 20` and :math:`z_\Delta = (z^{-2} -
    (2 \sigma_b)^{-2})^{-1/2}`: gradients and count together then cost the privacy of one query with
    noise multiplier z, so any accountant of DP-SGD (dp-accounting, JAX-Privacy) holds as it is.
    Without noise (z = 0) neither is added, and this is a clipper of per-example gradients.

    ``update`` wants per-example gradients, each tensor ``[B, ...]`` (``jax.vmap(jax.grad(loss),
    in_axes=(None, 0))``), so it stands first in a chain and not within ``optax.MultiSteps``. A step
    with a NaN or infinite norm of an example gives a zero update, without noise, and leaves C as it
    was.

    State: two scalars and the report. Cost: one reduction over the per-example gradients.

    Args:
      target: γ, the share of examples that shall not be clipped.
      adaptation_rate: η, how fast C moves.
      noise_multiplier: z, as for DP-SGD; less than B / 10.
      seed: of the noise, which is a function of it and the number of the step; an integer or a key
        (``jax.random.key``). Required where there is noise. Who knows it can take the noise away:
        draw it, from ``secrets`` say, and tell nobody.
      initial_norm: C of the first step.
      learning_rate: old name of ``adaptation_rate``, which hid the optimizer's own learning rate
        from ``optax.tree_utils.tree_get``; goes with the next version.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`TrackClippingQuantileState`.

    Raises:
      ValueError: a number out of its range, noise without a seed; from ``update``, gradients
        without an axis of examples, or too few examples for the noise.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.track_clipping_quantile(initial_norm=1.0), optax.sgd(0.1))
      >>> state = tx.init(jnp.zeros(1))
      >>> updates, state = tx.update(jnp.asarray([[4.0], [3.0], [0.5]]), state)
      >>> round(float(state[0].fraction), 4), round(float(state[0].clip_norm), 4)
      (0.3333, 1.0339)

    References:
      Andrew et al., `Differentially Private Learning with Adaptive Clipping
      <https://arxiv.org/abs/1905.03871>`_, 2021.
    """
    name = "track_clipping_quantile"
    if learning_rate is not None:
        warnings.warn(
            f"{name}(learning_rate=…) is now adaptation_rate=…; the old name goes with the next "
            "version",
            DeprecationWarning,
            stacklevel=2,
        )
        adaptation_rate = learning_rate
    _base.check_number(f"{name}.target", target, 0, 1)
    _base.check_number(f"{name}.adaptation_rate", adaptation_rate, 0, below=math.inf)
    _base.check_number(f"{name}.noise_multiplier", noise_multiplier, 0)
    _base.check_number(f"{name}.initial_norm", initial_norm, above=0, below=math.inf)
    noisy = _per_example.is_noisy(noise_multiplier)
    if noisy:
        _per_example.check_seed(name, seed)

    def init_fn(params: Any) -> TrackClippingQuantileState:
        dtype = _base.statistics_dtype(params)
        return TrackClippingQuantileState(
            count=jnp.zeros((), jnp.int32),
            clip_norm=jnp.asarray(initial_norm, dtype),
            fraction=jnp.zeros((), dtype),
            **_base.initial_report((), dtype),
        )

    def update_fn(
        updates: Any, state: TrackClippingQuantileState, params: Any = None
    ) -> tuple[Any, TrackClippingQuantileState]:
        del params
        leaves, treedef = _base.flatten(updates)
        examples = _per_example.number_of_examples(leaves)
        if isinstance(noise_multiplier, (int, float)) and leaves:
            _base.check_number(f"{name}.noise_multiplier", noise_multiplier, below=examples / 10)
        dtype = state.norm.dtype

        def value(hyperparameter: _base.Hyperparameter) -> jax.Array:
            return _base.hyperparameter(hyperparameter, state.count, dtype)

        bound, noise = state.clip_norm, value(noise_multiplier)
        norms = _per_example.norms(leaves, dtype)
        largest = jnp.max(norms, initial=0.0) if leaves else jnp.zeros((), dtype)
        finite = jnp.isfinite(largest)
        factors = _per_example.clip_factors(norms, bound)

        # One draw for the count, by a key that no tensor uses.
        drawn = [jnp.zeros((1,), dtype), *leaves]
        count_noise, *noises = [jnp.zeros((), dtype)] * len(drawn)
        if noisy:
            count_noise, *noises = _per_example.normal_like(drawn, seed, state.count)
        fraction = jnp.mean(norms <= bound, dtype=dtype) + jnp.where(noise > 0, count_noise / 20, 0)
        moved = bound * jnp.exp(-value(adaptation_rate) * (fraction - value(target)))
        # Gradients that stay zero must not shrink the bound to zero, from where it can't grow.
        moved = jnp.clip(moved, jnp.finfo(dtype).tiny, jnp.finfo(dtype).max)
        scale = noise / jnp.sqrt(1 - jnp.square(10 * noise / examples)) * bound / examples
        out = []
        for leaf, draw in zip(leaves, noises, strict=True):
            mean = _per_example.weighted_mean(leaf, factors, finite)
            out.append(jnp.where(finite, mean + scale * draw, 0).astype(leaf.dtype))
        new_state = TrackClippingQuantileState(
            count=optax.safe_increment(state.count),
            clip_norm=jnp.where(finite, moved, bound).astype(dtype),
            fraction=jnp.where(finite, fraction, state.fraction).astype(dtype),
            norm=largest,
            threshold=bound,
            clipped=~(largest <= bound),
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        return jax.tree.unflatten(treedef, out), new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))
