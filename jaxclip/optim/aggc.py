"""AGGC: clip groups of tensors of one function, each by its own recent norm."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _clipper


class AggcState(NamedTuple):
    """State of :func:`aggc`; vectors have one entry a tensor, which holds its group's number.

    Attributes:
      count: int32 scalar, number of updates.
      average: average S of the group's norms as let out, not bias-corrected.
      seen: int32, number of norms in the average.
      norm: norm of the tensor's group seen in the last step.
      threshold: largest norm allowed to the group in the last step.
      clipped: bool, was the group scaled, down or up.
      nonfinite_count: int32, number of updates in which the group's norm was NaN or infinite.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    average: jax.Array
    seen: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def aggc(
    beta: _base.Hyperparameter = 0.95,
    high: _base.Hyperparameter = 1.2,
    low: _base.Hyperparameter = 0.0,
    max_raise: _base.Hyperparameter = 1.1,
    groups: Sequence[str] = (),
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the norm of each group of tensors within an interval about its own average.

    For every group, with n its L2 norm and :math:`\hat S` the bias-corrected average of its norms
    before this step,

    .. math::

      n' = \begin{cases}
        \mathrm{high} \cdot \hat S & \text{if } n > \mathrm{high} \cdot \hat S, \\
        \min(\mathrm{low} \cdot \hat S,\; \mathrm{max\_raise} \cdot n)
          & \text{if } n < \mathrm{low} \cdot \hat S, \\
        n & \text{else,} \end{cases}
      \qquad g \leftarrow \frac{n'}{n} g, \qquad
      S \leftarrow \beta S + (1 - \beta) n'.

    Between per-tensor and global clipping: a volatile kind of layer does not scale the others down,
    and a single bias does not have a threshold of its own. Groups are kinds of modules over all
    layers: by default tensors whose path is the same but for its last part and for numbers
    (``image/blocks_0/mlp/up/kernel`` and ``image/blocks_7/mlp/up/bias`` are both
    ``image/blocks/mlp/up``).

    The interval is meant to tighten in the course of training: give ``high`` and ``low`` as
    schedules. Where this is not the authors' code:

    * theirs starts S at zero without a bias correction, so that the second update is clipped to
      (1 - β) times the first norm, and S then grows by (1 - β)(high - 1) an update at most; here
      the first norm enters as it is, nothing is clipped in the first update, and norms of zero do
      not enter;
    * their fine-tuning scripts run ``high`` at 0.6 and then 0.7 with no factor ever under 0.9,
      which is nearly a constant factor of 0.9; ``high=1.2`` is not theirs;
    * raising small norms is off in their scripts, and by default here (``low=0``).

    As with :func:`jaxclip.optim.adagc` thresholds rise slowly, by at most (1 - β)(high - 1) = 1% an
    update: gradients that grow for good reason are held back for long.

    State: two numbers a tensor and the report. Cost: one reduction a tensor.

    Args:
      beta: decay of the average.
      high: largest norm allowed, relative to the average.
      low: smallest norm that is not raised, relative to the average; 0 raises nothing.
      max_raise: largest factor by which a norm is raised.
      groups: regular expressions, searched in paths: the tensors that match the first one are a
        group, those that match the second but not the first another, and so on; the default
        grouping is for what matches none.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`AggcState`.

    Raises:
      ValueError: a number out of its range, or a group that is no regular expression.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.aggc(high=1.5)  # both are "up": a group of norm 5
      >>> three, four = jnp.asarray([3.0]), jnp.asarray([4.0])
      >>> gradient = {"up_0": {"kernel": three}, "up_1": {"kernel": four}}
      >>> _, state = tx.update(gradient, tx.init(gradient))
      >>> gradient["up_1"]["kernel"] = 10 * four
      >>> updates, state = tx.update(gradient, state)
      >>> [round(float(x), 3) for x in (*state.norm, *state.threshold)]
      [40.112, 40.112, 7.5, 7.5]

    References:
      Li et al., `AGGC: Adaptive Group Gradient Clipping for Stabilizing Large Language Model
      Training <https://arxiv.org/abs/2601.11864>`_, 2026; code: github.com/ZhiyuanLi218/AGGC.
    """
    _base.check_number("aggc.beta", beta, 0, below=1)
    _base.check_number("aggc.high", high, above=0)
    _base.check_number("aggc.low", low, 0, below=math.inf)
    _base.check_number("aggc.max_raise", max_raise, 1)
    patterns = _compile(groups)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {"average": jnp.zeros(shape, dtype), "seen": jnp.zeros(shape, jnp.int32)}

    def rule(leaves: list[jax.Array], state: AggcState, now: _clipper.Context) -> _clipper.Plan:
        members = _members(_base.tensor_names(now.treedef.unflatten(leaves)), patterns)
        norms = _group_norms(_base.tensor_norms(leaves, now.dtype), members)
        values = (now.complement(beta), *map(now.value, (high, low, max_raise)))
        return _clipper.Plan(
            norms, lambda seen, before: decide(seen, before, *values), _clipper.scale
        )

    def decide(
        norms: jax.Array,
        state: AggcState,
        fresh: jax.Array,
        above: jax.Array,
        below: jax.Array,
        raising: jax.Array,
    ) -> _clipper.Decision:
        known, present = state.seen > 0, norms > 0
        correction = _base.bias_correction(fresh, jnp.maximum(state.seen, 1))
        usual = state.average * (1 / correction)
        largest = jnp.where(known, above * usual, norms)
        smallest = jnp.where(known, below * usual, 0.0)
        raised = jnp.minimum(smallest, raising * norms)
        let_out = jnp.where(norms > largest, largest, jnp.maximum(norms, raised))
        clipped = (let_out != norms) & present
        factor = jnp.where(clipped, _base.safe_divide(let_out, norms, 1.0), 1.0).astype(norms.dtype)
        average = state.average + fresh * (let_out - state.average)
        return _clipper.Decision(
            norm=norms,
            threshold=largest.astype(norms.dtype),
            clipped=clipped,
            numbers=(factor,),
            own={
                "average": jnp.where(present, average, state.average),
                "seen": _base.increment_where(state.seen, present),
            },
        )

    return _clipper.clipper(AggcState, rule, own, per_tensor=True)


def _compile(groups: Sequence[str]) -> list[re.Pattern[str]]:
    """The patterns; one alone may come as a string."""
    if not isinstance(groups, Sequence):
        raise TypeError(f"aggc.groups={groups!r} must be a list of regular expressions")
    patterns = []
    for group in [groups] if isinstance(groups, str) else groups:
        try:
            patterns.append(re.compile(group))
        except (re.error, TypeError) as error:
            raise ValueError(f"aggc.groups: {group!r} is no regular expression: {error}") from error
    return patterns


def _members(names: Sequence[str], patterns: Sequence[re.Pattern[str]]) -> np.ndarray:
    """Number of each tensor's group, int32 ``[num_tensors]``."""
    keys: list[int | str] = []
    for name in names:
        matching = (i for i, pattern in enumerate(patterns) if pattern.search(name))
        module = re.sub(r"_?\d+", "", name.rpartition("/")[0])
        keys.append(next(matching, module))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.asarray([numbers[key] for key in keys], np.int32)


def _group_norms(norms: jax.Array, members: np.ndarray) -> jax.Array:
    """L2 norm of each tensor's group, ``[num_tensors]``; neither over- nor underflows early."""
    if not norms.size:
        return norms
    number = int(members.max()) + 1
    largest = jax.ops.segment_max(norms, members, number)
    usable = (largest > 0) & jnp.isfinite(largest)
    safe = jnp.where(usable, largest, 1.0)
    squares = jax.ops.segment_sum(jnp.square(norms / safe[members]), members, number)
    return (safe * jnp.sqrt(squares))[members]
