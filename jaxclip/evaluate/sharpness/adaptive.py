"""Adaptive sharpness: how far the loss rises in a neighbourhood (Andriushchenko et al., 2023).

"A Modern Look at the Relationship between Sharpness and Generalization", arXiv:2302.07011. A
perturbation is d = c * u with c = 1, or c = |w| (adaptive: invariant to scaling one layer up and
the next one down), and u in a ball of radius rho, of the l2 or of the largest-element norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.evaluate.sharpness.fixed_loss import Loss, Params, paths_of

NORMS = ("l2", "linf")

# Auto-PGD's own constants (Croce & Hein, 2020, arXiv:2003.01690).
_MOMENTUM = 0.75
_IMPROVED = 0.75


def scales(
    params: Params, *, adaptive: bool, only: Callable[[str], bool] = lambda path: True
) -> Params:
    """c of each element: |w| or 1, and 0 where nothing is perturbed.

    Args:
      params: nested dict.
      adaptive: |w| in place of 1.
      only: of a path, whether the tensor is perturbed at all (one layer, for instance).
    """
    flat = [
        (jnp.abs(leaf) if adaptive else jnp.ones_like(leaf)) if only(path) else jnp.zeros_like(leaf)
        for path, leaf in zip(paths_of(params), jax.tree.leaves(params), strict=True)
    ]
    result: Params = jax.tree.unflatten(jax.tree.structure(params), flat)
    return result


def average_sharpness(
    loss: Loss,
    params: Params,
    scale: Params,
    key: jax.Array,
    rho: Any,
    *,
    norm: str = "l2",
    samples: int = 20,
) -> jax.Array:
    """E L(w + d) - L(w): d ~ N(0, rho^2 c^2) for ``"l2"``, uniform in ±rho c for ``"linf"``.

    Each draw is used with both signs, so that the slope of the loss cancels out.

    Args:
      loss: ``params -> float32[]``.
      params: w.
      scale: c (:func:`scales`).
      key: a PRNG key.
      rho: radius.
      norm: ``"l2"`` or ``"linf"``.
      samples: draws.

    Raises:
      ValueError: another norm.
    """
    _check(norm)

    def sampler(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
        if norm == "l2":
            return jax.random.normal(key, shape, dtype)
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0)

    def rise(key: jax.Array) -> jax.Array:
        drawn = optax.tree.random_like(key, params, sampler=sampler)
        up, down = (
            loss(jax.tree.map(lambda w, c, z, s=s: w + s * rho * c * z, params, scale, drawn))
            for s in (1.0, -1.0)
        )
        return (up + down) / 2

    return jnp.mean(jax.lax.map(rise, jax.random.split(key, samples))) - loss(params)


def worst_sharpness(
    loss: Loss, params: Params, scale: Params, rho: Any, *, norm: str = "l2", steps: int = 20
) -> jax.Array:
    """max over |d / c| <= rho of L(w + d) - L(w), searched for by Auto-PGD; at least 0.

    The search is for u = d / c, where the ellipsoid of the l2 norm is a ball: so it projects by a
    scaling, and does not change either where a layer is scaled up and the next one down.

    Args:
      loss: ``params -> float32[]``, of one batch: the measure is the mean of those of batches.
      params: w.
      scale: c (:func:`scales`).
      rho: radius.
      norm: ``"l2"`` or ``"linf"``.
      steps: gradients.

    Raises:
      ValueError: another norm.
    """
    _check(norm)
    start = loss(params)

    def at(u: Params) -> Params:
        return jax.tree.map(lambda w, c, x: w + c * x, params, scale, u)

    value_and_grad = jax.value_and_grad(lambda u: loss(at(u)))
    step_of = _L2 if norm == "l2" else _LINF
    ascend, project = step_of

    def move(state: _Search, gradient: Params) -> Params:
        ascended = project(
            jax.tree.map(lambda x, g: x + state.rate * g, state.u, ascend(gradient)), rho
        )
        momentum = jnp.where(state.moves > 0, _MOMENTUM, 1.0)  # nothing lies behind the first step
        return project(
            jax.tree.map(
                lambda x, z, before: x + momentum * (z - x) + (1 - momentum) * (x - before),
                state.u,
                ascended,
                state.before,
            ),
            rho,
        )

    def body(state: _Search, checkpoint: jax.Array) -> tuple[_Search, None]:
        u = move(state, state.gradient)
        value, gradient = value_and_grad(u)
        better = value > state.best
        kept: Params = jax.tree.map(
            lambda new, old: jnp.where(better, new, old),
            (u, gradient),
            (state.best_u, state.best_gradient),
        )
        state = state._replace(
            u=u,
            before=state.u,
            gradient=gradient,
            value=value,
            best=jnp.where(better, value, state.best),
            best_u=kept[0],
            best_gradient=kept[1],
            improved=state.improved + (value > state.value),
            moves=state.moves + 1,
        )
        return jax.lax.cond(checkpoint > 0, lambda: _judge(state, checkpoint), lambda: state), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    value, gradient = value_and_grad(zeros)
    rate, none = jnp.asarray(2.0 * rho, value.dtype), jnp.zeros((), jnp.int32)
    state = _Search(
        zeros, zeros, gradient, value, value, zeros, gradient, rate, none, none, jnp.bool_(True),
        value,
    )  # fmt: skip
    state, _ = jax.lax.scan(body, state, jnp.asarray(_checkpoints(steps)))
    return state.best - start


class _Search(NamedTuple):
    """Where Auto-PGD is: this and the last iterate, the best, and what its checkpoints look at."""

    u: Params
    before: Params
    gradient: Params
    value: jax.Array
    best: jax.Array
    best_u: Params
    best_gradient: Params
    rate: jax.Array
    improved: jax.Array
    moves: jax.Array
    halved: jax.Array
    best_before: jax.Array


def _judge(state: _Search, length: jax.Array) -> _Search:
    """At a checkpoint: half the rate, from the best point, where there was too little progress."""
    slow = state.improved < _IMPROVED * length
    stuck = ~state.halved & (state.best == state.best_before)
    halve = slow | stuck
    u, before, gradient = jax.tree.map(
        lambda a, b: jnp.where(halve, a, b),
        (state.best_u, state.best_u, state.best_gradient),
        (state.u, state.before, state.gradient),
    )
    return state._replace(
        u=u,
        before=before,
        gradient=gradient,
        value=jnp.where(halve, state.best, state.value),
        rate=jnp.where(halve, state.rate / 2, state.rate),
        improved=jnp.zeros_like(state.improved),
        halved=halve,
        best_before=state.best,
    )


def _checkpoints(steps: int) -> np.ndarray:
    """int32[steps]: at each checkpoint the steps since the last one, else 0."""
    places, last = [0.0, 0.22], 0
    lengths = np.zeros(steps, np.int32)
    while places[-1] < 1:
        place = math.ceil(places[-1] * steps)
        if last < place <= steps:
            lengths[place - 1], last = place - last, place
        places.append(places[-1] + max(places[-1] - places[-2] - 0.03, 0.06))
    return lengths


def _unit(gradient: Params) -> Params:
    norm = optax.tree.norm(gradient)
    return jax.tree.map(lambda g: g / jnp.maximum(norm, 1e-30), gradient)


def _into_ball(u: Params, rho: Any) -> Params:
    factor = jnp.minimum(1.0, rho / jnp.maximum(optax.tree.norm(u), 1e-30))
    return jax.tree.map(lambda x: factor * x, u)


def _signs(gradient: Params) -> Params:
    signs: Params = jax.tree.map(jnp.sign, gradient)
    return signs


def _into_cube(u: Params, rho: Any) -> Params:
    clipped: Params = jax.tree.map(lambda x: jnp.clip(x, -rho, rho), u)
    return clipped


_L2 = (_unit, _into_ball)
_LINF = (_signs, _into_cube)


def _check(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is neither of {', '.join(NORMS)}")
