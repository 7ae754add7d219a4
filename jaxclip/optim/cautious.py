"""Cautious optimizers: move only the elements on which direction and gradient agree."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base


def cautious(
    inner: optax.GradientTransformation, floor: float = 1e-3
) -> optax.GradientTransformationExtraArgs:
    r"""Takes out of a direction what the present gradient does not agree with.

    With u what ``inner`` makes of the gradient g, for each tensor

    .. math::

      \phi = [u \cdot g > 0], \qquad
      u \leftarrow \frac{\phi}{\max(\mathrm{mean}(\phi), \mathrm{floor})} \, u.

    ``inner`` must be a direction *before* weight decay and learning rate, of the gradient's sign:
    ``optax.scale_by_adam()``, ``optax.scale_by_lion()`` and the like. Of ``optax.adamw``, whose
    updates point the other way, it would keep exactly the wrong elements. In a configuration
    ``direction: "cautious"`` puts it in the right place.

    It speeds up training where momentum overshoots. It is no cure for spikes: the step after one
    is still made of momentum that the spike is in, where the signs agree.

    State: that of ``inner``, nothing more. Cost: one reduction a tensor, over gradient and
    direction.

    Args:
      inner: the direction.
      floor: smallest share of agreeing elements that the step is made up for.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with the state of ``inner``.

    Raises:
      ValueError: ``floor`` is not in (0, 1].

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optax.chain(
      ...     optim.cautious(optax.scale_by_adam()),
      ...     optax.add_decayed_weights(0.1),
      ...     optax.scale_by_learning_rate(1e-3),
      ... )
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for gradient in ([1.0, 1.0], [1.0, -0.1]):
      ...     updates, state = tx.update(jnp.asarray(gradient), state, params)
      >>> [abs(round(float(u), 4)) for u in updates]
      [0.002, 0.0]

    References:
      Liang et al., `Cautious Optimizers: Improving Training with One Line of Code
      <https://arxiv.org/abs/2411.16085>`_, 2024. (In one branch of their released C-AdamW the mask
      is of u times u, which is always on.)
    """
    floor = _base.static_number("cautious.floor", floor, above=0, high=1)
    _base.check_inner("cautious", inner)
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        direction, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(lambda u, g: _agreeing(u, g, floor), direction, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


@functools.partial(jax.jit, static_argnames="floor")  # traced once a shape
def _agreeing(direction: jax.Array, gradient: jax.Array, floor: float) -> jax.Array:
    """One tensor's direction where it agrees with the gradient, made up for what is left out."""
    if not direction.size:
        return direction
    scaled = direction.astype(_base.wide_dtype(direction.dtype))
    scaled = scaled / jnp.maximum(_share(direction, gradient), floor).astype(scaled.dtype)
    agree = (jnp.sign(direction) == jnp.sign(gradient)) & (direction != 0)
    return _base.where(agree, scaled, 0.0).astype(direction.dtype)


def _share(direction: jax.Array, gradient: jax.Array) -> jax.Array:
    """Share of elements that agree in sign, none of them zero; float32."""
    # Signs first, for the product of small numbers underflows. Not in the words of the other place:
    # XLA would write out for both what it finds in common.
    agree = jnp.sign(direction) * jnp.sign(gradient) > 0
    counts = (agree.astype(jnp.uint32), (~agree).astype(jnp.uint32))
    # Both counts, since a reduction with one result is a kernel more, and an array in memory.
    yes, no = jax.lax.reduce(
        counts,
        (np.uint32(0), np.uint32(0)),
        lambda x, y: (x[0] + y[0], x[1] + y[1]),
        tuple(range(agree.ndim)),
    )
    return yes.astype(jnp.float32) / (yes.astype(jnp.float32) + no.astype(jnp.float32))
