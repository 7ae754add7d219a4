"""Pictures that a model gets wrong for a change nobody sees: projected gradient ascent (PGD).

Madry et al. (2018, arXiv:1706.06083): steps along the sign of the loss's gradient, each followed by
the projection to the pictures within a radius of the given ones, in the largest change of a number.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxclip.shapes import check_shapes


def pgd(
    loss: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    *,
    radius: float = 8.0,
    steps: int = 10,
    step_size: float | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Pictures within ``radius`` of the given ones on which a loss is high.

    Args:
      loss: ``float32[B, H, W, 3] -> float32[]``, a sum or mean over the pictures.
      images: uint8 or float[B, H, W, 3] in 0 to 255.
      radius: largest change of a number, in 255ths.
      steps: of the ascent.
      step_size: in 255ths; None for 2.5 ``radius / steps``.
      key: of the random start within the radius; None starts at the pictures.

    Returns:
      float32[B, H, W, 3] in 0 to 255. Traceable.

    Raises:
      ValueError: a radius or step size that is not above 0, or no step.
    """
    size = 2.5 * radius / max(steps, 1) if step_size is None else step_size
    if not radius > 0 or not size > 0 or steps < 1:
        raise ValueError(
            f"pgd: radius={radius}, steps={steps}, step_size={size}: all must be above 0"
        )
    given = jnp.asarray(images, jnp.float32)
    low, high = jnp.maximum(given - radius, 0.0), jnp.minimum(given + radius, 255.0)

    def step(_: int, images: jax.Array) -> jax.Array:
        return jnp.clip(images + size * jnp.sign(jax.grad(loss)(images)), low, high)

    start = given
    if key is not None:
        start = jnp.clip(
            given + jax.random.uniform(key, given.shape, minval=-radius, maxval=radius), low, high
        )
    result: jax.Array = jax.lax.fori_loop(0, steps, step, start)
    return result


def success_rate(before: jax.Array, after: jax.Array) -> jax.Array:
    """float32[]: of the pictures that were right the share that is wrong now; NaN for none right.

    Args:
      before: bool[B], which pictures the victim gets right as they are.
      after: bool[B], which it gets right once they are changed.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes("success_rate", before=(before, "N"), after=(after, "N"))
    right = jnp.sum(before)
    return jnp.sum(before & ~after) / jnp.where(right > 0, right, jnp.nan)
