"""The private mean of per-example gradients, each group of tensors clipped at a norm of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _per_example
from jaxclip.registry import hint

NOISES = ("equal", "proportional")

_NAME = "private_mean_by_group"  # what errors begin with


class PrivateMeanByGroupState(NamedTuple):
    """State of :func:`private_mean_by_group`; vectors have one entry a group.

    Attributes:
      count: int32 scalar, number of updates.
      fraction: noisy share of examples whose norm was within the bound; zero without count noise.
      norm: largest norm of an example in the last step; not private.
      threshold: the bound of the last step.
      clipped: bool, was any example clipped; not private.
      nonfinite_count: int32, number of updates with a NaN or infinite norm in any group.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    fraction: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def private_mean_by_group(
    groups: Sequence[str],
    clip_norms: Sequence[float] | jax.Array | Callable[[Any], Any],
    noise_multiplier: _base.Hyperparameter,
    *,
    noise: str = "equal",
    count_noise: float | None = None,
    seed: int | jax.Array | None = None,
) -> optax.GradientTransformation:
    r"""DP-SGD's mean of clipped gradients with noise, clipped and perturbed group by group.

    With :math:`g_{b,k}` the gradient of example b of B in group k of K and :math:`C_k` its bound,

    .. math::

      \bar g_k = \frac{1}{B} \left( \sum_b \min\left(1, \frac{C_k}{\|g_{b,k}\|}\right) g_{b,k}
        + s_k \xi_k \right), \qquad \xi_k \sim N(0, I).

    An example changes the sum by at most :math:`S = \sqrt{\sum_k C_k^2}`. With the noise multiplier
    σ of an accountant of DP-SGD the noise is :math:`s_k = \sigma S` (``noise="equal"``) or
    :math:`s_k = \sigma \sqrt{K} C_k` (``"proportional"``): in both
    :math:`\sum_k (C_k / s_k)^2 = 1 / \sigma^2`, so the guarantee is that of DP-SGD with σ, whatever
    the bounds are. One group is DP-SGD.

    This is what a controller of the bounds needs, such as RLDP's, which learns by reinforcement how
    to set them: give ``clip_norms`` as a function of the step, or through
    ``optax.inject_hyperparams``. **A controller may only look at what is private**: the update,
    and with ``count_noise`` the state's ``fraction``; ``norm`` and ``clipped`` are for debugging,
    and bounds that are set by them void the guarantee. ``fraction`` costs privacy, too: with noise
    of standard deviation ``count_noise`` on each count of examples (each example of which counts as
    ±1/2), the gradient's noise is raised from σ to
    :math:`(\sigma^{-2} - K / (2 \, \mathrm{count\_noise})^2)^{-1/2}`, so that both together have
    the multiplier σ.

    A step in which any example's norm is NaN or infinite gives a zero update: do not count on that
    for privacy, but keep such gradients out.

    State: two numbers a group and the report. Cost: one reduction over all examples' gradients and
    as many normal numbers as there are parameters.

    Args:
      groups: patterns, regular expressions searched in paths such as ``adapter_0/lora_a``; a tensor
        belongs to the first that matches. Every tensor must match one: ``""`` last is for the rest.
      clip_norms: C, one number above zero a group; or an array ``[K]``, or a function from the
        number of updates before this one to one.
      noise_multiplier: σ; zero is for tests.
      noise: ``"equal"`` or ``"proportional"``.
      count_noise: standard deviation of the noise on the counts, above :math:`\sigma \sqrt{K} / 2`;
        ``None`` for no counts. Where σ is a schedule that comes above that, the update is NaN.
      seed: an integer or a key that nobody else knows; required where there is noise.

    Returns:
      An ``optax.GradientTransformation`` with state :class:`PrivateMeanByGroupState`. Its update
      takes gradients with a leading axis of examples and gives their private mean.

    Raises:
      ValueError: no group, another number of bounds, a number out of its range, no seed; from
        ``init``, a tensor that matches no group, or a group that no tensor matches.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.private_mean_by_group(["bias", ""], [1.0, 5.0], noise_multiplier=0.0)
      >>> params = {"kernel": jnp.zeros(2), "bias": jnp.zeros(1)}
      >>> gradients = {"kernel": jnp.asarray([[3.0, 4.0], [30.0, 40.0]]), "bias": jnp.ones((2, 1))}
      >>> updates, state = tx.update(gradients, tx.init(params))
      >>> updates["kernel"].tolist(), updates["bias"].tolist(), state.clipped.tolist()
      ([3.0, 4.0], [1.0], [False, True])

    References:
      Abadi et al., `Deep Learning with Differential Privacy <https://arxiv.org/abs/1607.00133>`_,
      2016, section 3.2, for the groups; `RLDP <https://arxiv.org/abs/2507.22565>`_, 2025, for the
      controller; Andrew et al., `Differentially Private Learning with Adaptive Clipping
      <https://arxiv.org/abs/1905.03871>`_, 2021, for the counts.
    """
    patterns = _compile(groups)
    _check(clip_norms, noise_multiplier, noise, count_noise, len(patterns))
    noisy = _per_example.is_noisy(noise_multiplier) or count_noise is not None
    if noisy:
        _per_example.check_seed(_NAME, seed)

    def init_fn(params: Any) -> PrivateMeanByGroupState:
        _members(params, patterns)
        dtype, shape = _base.statistics_dtype(params), (len(patterns),)
        return PrivateMeanByGroupState(
            count=jnp.zeros((), jnp.int32),
            fraction=jnp.zeros(shape, dtype),
            **_base.initial_report(shape, dtype),
        )

    def update_fn(
        updates: Any, state: PrivateMeanByGroupState, params: Any = None
    ) -> tuple[Any, PrivateMeanByGroupState]:
        del params
        leaves, treedef = _base.flatten(updates)
        examples, dtype = _per_example.number_of_examples(leaves), state.norm.dtype
        members = _members(updates, patterns)
        given = clip_norms(state.count) if callable(clip_norms) else clip_norms
        bounds = jnp.broadcast_to(jnp.asarray(given, dtype), state.norm.shape)
        norms = _norms(leaves, members, len(patterns), dtype)
        finite = jnp.all(jnp.isfinite(norms))
        factors = _per_example.clip_factors(norms, bounds[:, None])

        # The counts' draws by a key that no tensor uses.
        drawn = [jnp.zeros((1, len(patterns)), dtype), *leaves]
        draws = [jnp.zeros(leaf.shape[1:], dtype) for leaf in drawn]
        if noisy:
            draws = _per_example.normal_like(drawn, seed, state.count)
        sigma = _base.hyperparameter(noise_multiplier, state.count, dtype)
        fraction = state.fraction
        if count_noise is not None:
            sigma = jax.lax.rsqrt(1 / jnp.square(sigma) - len(patterns) / (2 * count_noise) ** 2)
            within = jnp.mean(norms <= bounds[:, None], axis=1, dtype=dtype)
            fraction = jnp.where(finite, within + count_noise / examples * draws[0], fraction)
        scales = sigma * _spread(bounds, noise) / examples
        out = []
        for leaf, draw, k in zip(leaves, draws[1:], members, strict=True):
            mean = _per_example.weighted_mean(leaf, factors[k], finite)
            out.append(jnp.where(finite, mean + scales[k] * draw, 0).astype(leaf.dtype))
        largest = jnp.max(norms, axis=1)
        new_state = PrivateMeanByGroupState(
            count=optax.safe_increment(state.count),
            fraction=fraction.astype(dtype),
            norm=largest,
            threshold=bounds,
            clipped=~(largest <= bounds),
            nonfinite_count=_base.increment_where(state.nonfinite_count, ~finite),
        )
        return jax.tree.unflatten(treedef, out), new_state

    return optax.GradientTransformation(init_fn, _base.own_promotion(update_fn))


def _norms(leaves: list[jax.Array], members: np.ndarray, number: int, dtype: Any) -> jax.Array:
    """Norm of each example's gradient in each group, ``[num_groups, B]``."""
    groups = [[leaves[i] for i in np.flatnonzero(members == k)] for k in range(number)]
    return jnp.stack([_per_example.norms(group, dtype) for group in groups])


def _spread(bounds: jax.Array, noise: str) -> jax.Array:
    """Standard deviation of the noise on each group's sum, for a noise multiplier of one."""
    if noise == "equal":
        return jnp.broadcast_to(_base.combine_norms(bounds), bounds.shape)
    return math.sqrt(bounds.size) * bounds


def _compile(groups: Sequence[str]) -> list[re.Pattern[str]]:
    """The patterns.

    Raises:
      ValueError: none, a single string, or no regular expression.
    """
    if isinstance(groups, str) or not isinstance(groups, Sequence) or not groups:
        raise ValueError(
            f'{_NAME}.groups={groups!r} must be a list of patterns; [""] is one of all'
        )
    patterns = []
    for group in groups:
        try:
            patterns.append(re.compile(group))
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{_NAME}.groups: {group!r} is no regular expression: {error}"
            ) from error
    return patterns


def _check(norms: Any, multiplier: Any, noise: str, count_noise: Any, number: int) -> None:
    """Refuse arguments that make no sense, for a number of groups."""
    _check_norms(norms, number)
    _base.check_number(f"{_NAME}.noise_multiplier", multiplier, 0, below=math.inf)
    if noise not in NOISES:
        raise ValueError(f"{_NAME}.noise={noise!r}{hint(str(noise), NOISES)}")
    if count_noise is not None:
        _check_count_noise(count_noise, multiplier, number)


def _check_norms(norms: Any, number: int) -> None:
    """Refuse bounds that are not one positive number a group, if they are known."""
    if callable(norms):
        return
    if np.shape(norms) != (number,):
        raise ValueError(
            f"{_NAME}.clip_norms has shape {np.shape(norms)}; give one for each of {number} groups"
        )
    if not isinstance(norms, jax.Array):
        for i, norm in enumerate(norms):
            _base.check_number(f"{_NAME}.clip_norms[{i}]", norm, above=0)


def _check_count_noise(count_noise: Any, multiplier: Any, number: int) -> None:
    """Refuse noise on the counts that leaves the gradient no privacy to spend."""
    _base.static_number(f"{_NAME}.count_noise", count_noise, above=0)
    if isinstance(multiplier, (int, float)):
        least = multiplier * math.sqrt(number) / 2
        if not count_noise > least:
            raise ValueError(
                f"{_NAME}.count_noise={count_noise} must be > {least:.4g}, that is "
                f"noise_multiplier * sqrt({number} groups) / 2, or the counts spend all privacy"
            )


def _members(tree: Any, patterns: Sequence[re.Pattern[str]]) -> np.ndarray:
    """Number of each tensor's group, int ``[num_tensors]``.

    Raises:
      ValueError: a tensor that matches none, or a group that no tensor matches.
    """
    found = []
    for path in _base.tensor_names(tree):
        matching = (k for k, pattern in enumerate(patterns) if pattern.search(path))
        found.append(next(matching, None))
        if found[-1] is None:
            raise ValueError(
                f'{_NAME}.groups: none matches {path!r}; end them with "" for the rest'
            )
    for k, pattern in enumerate(patterns):
        if k not in found:
            raise ValueError(
                f"{_NAME}.groups[{k}]: {pattern.pattern!r} is the first to match of no tensor; "
                "leave it out, for its noise would count"
            )
    return np.asarray(found, np.int32)
