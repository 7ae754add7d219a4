"""Slices of the loss landscape along filter-normalised directions (Li et al., 2018).

"Visualizing the Loss Landscape of Neural Nets", arXiv:1712.09913: each unit of a random direction
is as long as the same unit of the weights, so that slices of models of different scales compare.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.evaluate.sharpness.fixed_loss import Loss, Params, paths_of

MODES = ("filter", "layer", "weight")

# Tables: a row is a unit. Of kernels a unit is what leads to one output, along the last axis.
_TABLES = re.compile(r"(^|/)(embedding|positions|registers|probe|token_embedding)$")


def random_direction(params: Params, key: jax.Array, mode: str = "filter") -> Params:
    """A random direction as long as the weights, unit by unit; vectors (biases, gains) are 0.

    Args:
      params: nested dict.
      key: a PRNG key.
      mode: what is brought to the weights' own length: each ``"filter"`` (the weights of an output
        unit, or a row of a table), each tensor (``"layer"``), or each element (``"weight"``: a
        random sign of its own magnitude).

    Raises:
      ValueError: another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is none of {', '.join(MODES)}")
    drawn = optax.tree.random_like(key, params, sampler=jax.random.normal)
    leaves = [
        _like(path, w, d, mode)
        for path, w, d in zip(
            paths_of(params), jax.tree.leaves(params), jax.tree.leaves(drawn), strict=True
        )
    ]
    result: Params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return result


def _like(path: str, weight: jax.Array, drawn: jax.Array, mode: str) -> jax.Array:
    if math.prod(weight.shape) == max((1, *weight.shape)):  # a vector, whatever its axes
        return jnp.zeros_like(weight)
    if mode == "weight":
        return jnp.sign(drawn) * jnp.abs(weight)
    axes: tuple[int, ...] = tuple(range(weight.ndim))
    if mode == "filter":
        axes = axes[1:] if _TABLES.search(path) else axes[:-1]
    lengths = (jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (weight, drawn))
    wanted, given = lengths
    return drawn * wanted / (given + 1e-10)


def grid_losses(
    loss: Loss,
    params: Params,
    directions: Sequence[Params],
    coordinates: Sequence[np.ndarray],
    *,
    chunk: int = 1,
) -> jax.Array:
    """The loss at params + sum_i x_i direction_i, on a grid of one axis for each direction.

    Args:
      loss: ``params -> float32[]``.
      params: the centre.
      directions: trees like ``params``; for a line to another model the difference of both.
      coordinates: the places along each direction.
      chunk: places that are computed at once.

    Returns:
      float32 with an axis for each direction.

    Raises:
      ValueError: not as many axes as directions.
    """
    if len(directions) != len(coordinates) or not directions:
        raise ValueError(f"{len(directions)} directions, but {len(coordinates)} axes of places")
    axes = [np.asarray(axis, np.float32) for axis in coordinates]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))

    def one(place: jax.Array) -> jax.Array:
        def moved(w: jax.Array, *along: jax.Array) -> jax.Array:
            return w + sum(place[i] * each for i, each in enumerate(along))

        return loss(jax.tree.map(moved, params, *directions))

    values = jax.lax.map(one, jnp.asarray(places), batch_size=chunk if chunk > 1 else None)
    return values.reshape([len(axis) for axis in axes])
