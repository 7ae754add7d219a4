"""ZClip: clip the global gradient norm where it is an outlier among the recent ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper

MODES = ("zscore", "percentile")
CLIP_OPTIONS = ("adaptive_scaling", "mean")


class ZclipState(NamedTuple):
    """State of :func:`zclip`; all scalars.

    Attributes:
      count: int32, number of updates.
      mean: average μ of the norms; during the warm-up, of those collected so far.
      variance: variance v; during the warm-up, the sum of squared deviations from ``mean``.
      norm: global norm seen in the last step.
      threshold: norm let out in the last step (c in the docstring of :func:`zclip`).
      clipped: bool, did the last step change the gradients.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
      streak: int32, number of updates in a row, up to the last, in which the adaptive threshold
        acted.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    mean: jax.Array
    variance: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array
    streak: jax.Array


def zclip(
    alpha: _base.Hyperparameter = 0.97,
    z_threshold: _base.Hyperparameter = 2.5,
    max_norm: _base.Hyperparameter | None = 1.0,
    eps: _base.Hyperparameter = 1e-6,
    warmup_steps: int | jax.Array = 25,
    mode: str = "zscore",
    clip_option: str = "adaptive_scaling",
    clip_factor: _base.Hyperparameter = 1.0,
    skip_update_on_spike: bool = False,
    release_after: int | jax.Array | None = 100,
) -> optax.GradientTransformationExtraArgs:
    r"""Clips the global norm where its z-score among the recent norms is too high.

    With :math:`n = \|G\|` the L2 norm of all gradients, :math:`\sigma = \sqrt{v}` and
    :math:`z = (n - \mu) / (\sigma + \epsilon)`, the adaptive threshold acts

    * ``mode="zscore"``: if :math:`z > z_{thr}`; it is then
      :math:`\mathrm{clip\_factor} \cdot (\mu + z_{thr} \sigma / (z / z_{thr}))` with
      ``clip_option="adaptive_scaling"``, or :math:`\mu` with ``clip_option="mean"``;
    * ``mode="percentile"``: if :math:`n > \mu + z_{thr}\sigma`, and is that bound.

    Gradients are multiplied by :math:`c / (n + 10^{-6})` if :math:`n > c`, where :math:`c` is the
    smaller of the adaptive threshold (:math:`n` where it does not act) and ``max_norm``. Then the
    threshold where it acted, else :math:`n`, enters the averages as :math:`x`:

    .. math::

      \mu \leftarrow \alpha\mu + (1 - \alpha) x, \qquad
      v \leftarrow \alpha v + (1 - \alpha) (x - \mu)^2 \text{ (with the new } \mu\text{)}.

    In the first ``warmup_steps`` updates only ``max_norm`` clips; at their end μ and v are mean and
    population variance of their norms. Steps with a NaN or infinite norm give a zero update, count
    in ``nonfinite_count`` alone and leave the averages as they are; the authors' code lets one NaN
    poison them for ever. Norms above 1e17 enter the averages as 1e17, for their squares to stay in
    float32.

    As published, the averages can lock: where norms rise for good (to 1.5 times or more), the value
    that enters is the threshold, which stays near the old μ, and every step is clipped for ever. So
    from the update number ``release_after`` on of an unbroken row of adaptively clipped ones, raw
    norms enter (with ``skip_update_on_spike``, too) until the threshold does not act; gradients are
    clipped all the while. That is not in the paper; ``release_after=None`` is without it.

    State: five scalars and the report. Cost: one reduction over the gradients.

    Args:
      alpha: decay of the averages.
      z_threshold: z-score above which a norm is a spike.
      max_norm: constant bound on the norm besides the adaptive one, ``None`` for none.
      eps: added to the standard deviation in the z-score.
      warmup_steps: number of updates that only collect norms.
      mode: ``"zscore"`` or ``"percentile"``.
      clip_option: ``"adaptive_scaling"`` or ``"mean"``; for ``mode="zscore"``.
      clip_factor: factor on the adaptive threshold; for ``"adaptive_scaling"``.
      skip_update_on_spike: whether a step in which the adaptive threshold acted leaves the averages
        as they were. (The gradients are clipped and passed on all the same.)
      release_after: length of a row of adaptively clipped updates from which on the averages take
        the raw norms; ``None`` for never, as published.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`ZclipState`.

    Raises:
      ValueError: unknown ``mode`` or ``clip_option``, or a number out of its range.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.zclip(max_norm=1.0), optax.adamw(1e-3))
      >>> params = {"w": jnp.ones(3)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.asarray([3.0, 0.0, 4.0])}, state, params)
      >>> float(state[0].norm), float(state[0].threshold), bool(state[0].clipped)
      (5.0, 1.0, True)

    References:
      Kumar et al., `ZClip: Adaptive Spike Mitigation for LLM Pre-Training
      <https://arxiv.org/abs/2504.02507>`_, 2025.
    """
    _base.check_flag("zclip.skip_update_on_spike", skip_update_on_spike)
    _check(alpha, z_threshold, max_norm, eps, mode, clip_option, clip_factor)
    fixed = _Fixed(
        mode,
        clip_option,
        _base.integer("zclip.warmup_steps", warmup_steps, 1),
        skip_update_on_spike,
        None if release_after is None else _base.integer("zclip.release_after", release_after, 1),
    )

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {
            "mean": jnp.zeros(shape, dtype),
            "variance": jnp.zeros(shape, dtype),
            "streak": jnp.zeros(shape, jnp.int32),
        }

    def rule(leaves: list[jax.Array], state: ZclipState, now: _clipper.Context) -> _clipper.Plan:
        # Not together: to the last digit as it has always been, for runs that are to be repeated.
        norm = _base.global_norm(leaves, now.dtype, together=False)
        numbers = _Numbers(
            now.value(z_threshold),
            now.value(eps),
            now.value(clip_factor),
            now.value(alpha),
            None if max_norm is None else now.value(max_norm),
        )
        return _clipper.Plan(
            norm, lambda seen, before: _decide(seen, before, numbers, fixed), _clipper.scale
        )

    return _clipper.clipper(ZclipState, rule, own, per_tensor=False)


class _Fixed(NamedTuple):
    """Arguments of :func:`zclip` that are the same in all steps."""

    mode: str
    clip_option: str
    warmup_steps: int | jax.Array
    skip_update_on_spike: bool
    release_after: int | jax.Array | None


class _Numbers(NamedTuple):
    """Arguments of :func:`zclip` that may be schedules, as scalars of one step."""

    z_threshold: jax.Array
    eps: jax.Array
    clip_factor: jax.Array
    alpha: jax.Array
    max_norm: jax.Array | None


def _decide(
    norm: jax.Array, state: ZclipState, numbers: _Numbers, fixed: _Fixed
) -> _clipper.Decision:
    """The factor on the gradients, and the averages after a step with this global norm."""
    collected = state.count - state.nonfinite_count
    spike, adaptive = _adaptive_threshold(state, norm, numbers, fixed)
    spike = spike & (collected >= fixed.warmup_steps)
    allowed = jnp.where(spike, adaptive, norm)
    streak = jnp.where(spike, optax.safe_increment(state.streak), 0)
    released = jnp.bool_(False) if fixed.release_after is None else streak >= fixed.release_after

    fed = jnp.minimum(jnp.where(released, norm, allowed), _base.LARGEST_SQUARABLE)
    mean, variance = _feed(state, fed, numbers.alpha, fixed.warmup_steps, collected)
    keep = spike & fixed.skip_update_on_spike & ~released
    if numbers.max_norm is not None:
        allowed = jnp.minimum(allowed, numbers.max_norm)
    clipped = norm > allowed
    factor = jnp.where(clipped, allowed / (norm + 1e-6), 1.0).astype(norm.dtype)
    return _clipper.Decision(
        norm=norm,
        threshold=allowed,
        clipped=clipped,
        numbers=(factor,),
        own={
            "mean": jnp.where(keep, state.mean, mean),
            "variance": jnp.where(keep, state.variance, variance),
            "streak": streak,
        },
    )


def _adaptive_threshold(
    state: ZclipState, norm: jax.Array, numbers: _Numbers, fixed: _Fixed
) -> tuple[jax.Array, jax.Array]:
    """Whether the norm is a spike, and the threshold that it then gets."""
    mean, deviation = state.mean, jnp.sqrt(state.variance)
    if fixed.mode == "percentile":
        bound = mean + numbers.z_threshold * deviation
        return norm > bound, bound
    z_score = (norm - mean) / (deviation + numbers.eps)
    spike = z_score > numbers.z_threshold
    if fixed.clip_option == "mean":
        return spike, mean
    # Where it is no spike the value is not used, but must not divide by zero.
    ratio = jnp.where(spike, z_score, 1.0) / numbers.z_threshold
    return spike, numbers.clip_factor * (mean + numbers.z_threshold * deviation / ratio)


def _feed(
    state: ZclipState,
    fed: jax.Array,
    alpha: jax.Array,
    warmup_steps: int | jax.Array,
    collected: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Averages after one more value: exact sums in the warm-up, exponential ones after.

    Args:
      state: before.
      fed: the value.
      alpha: decay of the exponential ones.
      warmup_steps: number of values of the warm-up.
      collected: number of values so far.
    """
    number = (collected + 1).astype(fed.dtype)
    # Welford's update: the mean of squares minus the square of the mean would lose all digits where
    # norms vary little.
    deviation = fed - state.mean
    warm_mean = state.mean + deviation / number
    sum_of_squares = state.variance + deviation * (fed - warm_mean)
    is_last = collected + 1 == warmup_steps
    warm_variance = jnp.where(is_last, sum_of_squares / number, sum_of_squares)

    mean = alpha * state.mean + (1 - alpha) * fed
    variance = alpha * state.variance + (1 - alpha) * jnp.square(fed - mean)
    warm = collected >= warmup_steps
    return jnp.where(warm, mean, warm_mean), jnp.where(warm, variance, warm_variance)


def _check(
    alpha: Any,
    z_threshold: Any,
    max_norm: Any,
    eps: Any,
    mode: str,
    clip_option: str,
    clip_factor: Any,
) -> None:
    """Refuse arguments that make no sense."""
    if mode not in MODES:
        raise ValueError(f"zclip.mode={mode!r}; use one of {', '.join(MODES)}")
    if clip_option not in CLIP_OPTIONS:
        raise ValueError(f"zclip.clip_option={clip_option!r}; use one of {', '.join(CLIP_OPTIONS)}")
    _base.check_number("zclip.alpha", alpha, 0, 1)
    _base.check_number("zclip.z_threshold", z_threshold, above=0)
    _base.check_number("zclip.eps", eps, 0, below=math.inf)
    _base.check_number("zclip.clip_factor", clip_factor, above=0, below=math.inf)
    if max_norm is not None:
        _base.check_number("zclip.max_norm", max_norm, above=0)
