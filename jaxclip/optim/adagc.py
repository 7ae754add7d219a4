"""AdaGC: clip each tensor's norm at a little more than its own recent clipped norm."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper

SCOPES = ("tensor", "global")


class AdagcState(NamedTuple):
    """State of :func:`adagc`; vectors have one entry a tensor (scalars for "global").

    Attributes:
      count: int32 scalar, number of updates.
      gamma: average of the clipped norms; infinite for a tensor that had no gradient yet.
      norm: norm seen in the last step.
      threshold: norm let out in the last step.
      clipped: bool, was the tensor scaled in the last step.
      nonfinite_count: int32, number of updates in which the tensor's update became zero because the
        norm looked at was NaN or infinite.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    gamma: jax.Array
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def adagc(
    lambda_abs: _base.Hyperparameter = 1.0,
    lambda_rel: _base.Hyperparameter = 1.05,
    beta: _base.Hyperparameter = 0.98,
    warmup_steps: int | jax.Array = 100,
    eps: _base.Hyperparameter = 0.0,
    inclusive_warmup: bool = False,
    scope: str = "tensor",
) -> optax.GradientTransformationExtraArgs:
    r"""Clips each tensor's norm at ``lambda_rel`` times the average of its clipped norms.

    In updates :math:`t < \mathrm{warmup\_steps}` (t counts from 1) gradients are clipped by their
    global norm, and each tensor i keeps the smallest of its norms:

    .. math::

      h = \min(1, \lambda_{abs} / \|G\|), \quad \hat g_i = h g_i, \quad
      \gamma_i \leftarrow \min(\gamma_i, \|\hat g_i\|), \quad \gamma_i = \infty \text{ at first.}

    After these, every tensor looks at itself alone:

    .. math::

      h_i = \min(1, \lambda_{rel} \gamma_i / \|g_i\|), \quad \hat g_i = h_i g_i, \quad
      \gamma_i \leftarrow \beta \gamma_i + (1 - \beta) \|\hat g_i\|.

    One case is not as published: a norm of exactly zero does not enter the minimum of the warm-up,
    and a tensor without a finite average after the warm-up goes on as in it. As published, one zero
    gradient in the first updates (any layer behind a zero-initialised projection has it in the
    first one) makes the average zero, and the tensor gets no update ever again.

    The authors' released code (github.com/lishuai-97/AdaGC) has other defaults than the paper,
    counts the warm-up inclusively and adds 1e-6 to norms:
    ``adagc(lambda_rel=1.04, beta=0.99, eps=1e-6, inclusive_warmup=True)``.

    A threshold can shrink towards zero but grows by at most 0.1% an update (with the defaults), so
    exempt scalars whose gradient passes through zero, such as CLIP's ``logit_scale``:
    ``optax.masked(adagc(), {"image": True, "text": True, "logit_scale": False})``.

    ``scope="global"`` (AdaGC-global) is the same rule for one tensor made of all: the global norm
    against the average of its own clipped values. One layer's spike then scales all of them down.

    State: one number a tensor (or one) and the report. Cost: one reduction a tensor; tensors
    exchange nothing after the warm-up.

    Args:
      lambda_abs: bound on the global norm in the warm-up.
      lambda_rel: bound on a tensor's norm relative to its average.
      beta: decay of the average.
      warmup_steps: update from which the relative rule holds.
      eps: added to the norms that gradients are compared with and divided by.
      inclusive_warmup: whether update number ``warmup_steps`` still belongs to the warm-up.
      scope: ``"tensor"``, or ``"global"`` for one norm and one average of all tensors.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`AdagcState`. In the
      warm-up a tensor's ``threshold`` is its share ``lambda_abs * norm / global_norm``.

    Raises:
      ValueError: a number out of its range.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(optim.adagc(warmup_steps=2), optax.adamw(1e-3))
      >>> params = {"w": jnp.ones(2)}
      >>> state = tx.init(params)
      >>> for size in (0.5, 50.0):
      ...     _, state = tx.update({"w": jnp.asarray([size, 0.0])}, state, params)
      >>> state[0].norm.tolist(), state[0].threshold.tolist(), state[0].clipped.tolist()
      ([50.0], [0.5249999761581421], [True])

    References:
      Wang et al., `AdaGC: Improving Training Stability for Large Language Model Pretraining
      <https://arxiv.org/abs/2502.11034>`_, 2025.
    """
    if scope not in SCOPES:
        raise ValueError(f"adagc.scope={scope!r}; use one of {', '.join(SCOPES)}")
    _base.check_flag("adagc.inclusive_warmup", inclusive_warmup)
    _base.check_number("adagc.lambda_abs", lambda_abs, above=0)
    _base.check_number("adagc.lambda_rel", lambda_rel, above=0)
    _base.check_number("adagc.beta", beta, 0, 1)
    _base.check_number("adagc.eps", eps, 0, below=math.inf)
    steps = _base.integer("adagc.warmup_steps", warmup_steps, 0) + bool(inclusive_warmup)

    def own(params: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        del params
        return {"gamma": jnp.full(shape, jnp.inf, dtype)}

    def rule(leaves: list[jax.Array], state: AdagcState, now: _clipper.Context) -> _clipper.Plan:
        numbers = _Numbers(
            now.value(lambda_abs),
            now.value(lambda_rel),
            now.value(eps),
            now.value(beta),
            now.complement(beta),
        )
        if scope == "tensor":
            norms, total = _base.norms_and_total(leaves, now.dtype)
        else:
            norms = total = _base.global_norm(leaves, now.dtype)
        return _clipper.Plan(
            (norms, total),
            lambda seen, before: _decide(seen, before, numbers, steps),
            _clipper.scale,
        )

    return _clipper.clipper(AdagcState, rule, own, per_tensor=scope == "tensor")


class _Numbers(NamedTuple):
    """Hyperparameters of a step; ``fresh`` is ``1 - beta``."""

    lambda_abs: jax.Array
    lambda_rel: jax.Array
    eps: jax.Array
    beta: jax.Array
    fresh: jax.Array


def _decide(
    seen: tuple[jax.Array, jax.Array],
    state: AdagcState,
    numbers: _Numbers,
    warmup_steps: int | jax.Array,
) -> _clipper.Decision:
    """The factor on each tensor, and the averages after a step with these norms.

    Args:
      seen: norms of the tensors, and the global norm.
      state: before.
      numbers: hyperparameters.
      warmup_steps: number of the update, from 1, at which the relative rule begins.
    """
    norms, total = seen
    is_global = (state.count + 1 < warmup_steps) | ~jnp.isfinite(state.gamma)
    # A tensor is skipped where the norm that it goes by is not finite.
    looked = jnp.where(is_global & ~jnp.isfinite(total), jnp.nan, norms)

    bound, small = numbers.lambda_abs, numbers.eps
    # `total` is at least every one of the norms: where it is zero, so are they.
    share = bound * _base.safe_divide(norms, total + small, 1.0)
    threshold = jnp.where(is_global, share, numbers.lambda_rel * state.gamma)
    clipped = jnp.where(is_global, total + small > bound, norms + small > threshold)
    allowed = jnp.where(is_global, bound, threshold)
    against = jnp.where(is_global, total, norms) + small
    factor = jnp.where(clipped, _base.safe_divide(allowed, against, 1.0), 1.0)
    factor = factor.astype(norms.dtype)

    let_out = factor * norms
    smallest = jnp.where(let_out > 0, jnp.minimum(state.gamma, let_out), state.gamma)
    average = numbers.beta * state.gamma + numbers.fresh * let_out
    return _clipper.Decision(
        norm=norms,
        finite=jnp.isfinite(looked),
        threshold=threshold,
        clipped=clipped,
        numbers=(factor,),
        own={"gamma": jnp.where(is_global, smallest, average)},
    )
