"""Stochastic rounding for bfloat16 parameters: small steps are made now and then, but whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _bfloat16


class StochasticRoundingState(NamedTuple):
    """State of :func:`stochastic_rounding`.

    Attributes:
      count: int32, number of updates.
      inner_state: of the wrapped optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    inner_state: Any


def stochastic_rounding(
    inner: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Rounds new bfloat16 parameters up or down at random, so that they are right on average.

    Rounded to nearest, a step of less than 1/512 of a weight is lost. Here, between two
    neighbouring bfloat16 numbers a < b,

    .. math::

      p' = b \text{ with probability } \frac{p + u - a}{b - a}, \text{ else } a,

    with u the update of ``inner``; so :math:`E[p'] = p + u`. What comes out is :math:`p' - p`, in
    float32, so that ``optax.apply_updates`` gives exactly p'. (Do not cast updates to bfloat16 on
    the way.) ``inner`` sees gradients and parameters as float32; its moments are float32 unless it
    has a ``mu_dtype``. Parameters of other dtypes are passed by.

    Parameters wander by about half a rounding step at random, which float32 ones do not: with a
    small learning rate that is what limits the result, and
    :func:`jaxclip.optim.kahan_summation` is closer to float32. The random numbers are a function of
    ``seed``, the number of updates and the tensor, the same however arrays are sharded.

    State: one number and that of ``inner``. Cost: 16 random bits an element, from a hash of its
    place (two rounds of MurmurHash3's finaliser); nobody has to be unable to guess them.
    Compiles in the time of ``inner`` and a tenth to a third of it.

    Args:
      inner: any optimizer, learning rate included.
      seed: of the random numbers.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`StochasticRoundingState`. Its
      ``update`` needs the parameters.

    Raises:
      ValueError: from ``update``, without parameters.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.stochastic_rounding(optax.sgd(1.0))
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> gradient = jnp.full_like(params, -1e-3)
      >>> updates, _ = tx.update(gradient, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> sorted(set(params.tolist())), round(float(params.astype(jnp.float32).mean()), 3)
      ([1.0, 1.0078125], 1.001)

    References:
      Gupta et al., `Deep Learning with Limited Numerical Precision
      <https://arxiv.org/abs/1502.02551>`_, 2015; for bfloat16: Zamirai et al., `Revisiting BFloat16
      Training <https://arxiv.org/abs/2010.06192>`_, 2020.
    """
    seed = _base.static_integer("stochastic_rounding.seed", seed, 0, None)
    _base.check_inner("stochastic_rounding", inner)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Any) -> StochasticRoundingState:
        return StochasticRoundingState(
            jnp.zeros((), jnp.int32), inner.init(_bfloat16.widen(params))
        )

    def update_fn(
        updates: Any, state: StochasticRoundingState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, StochasticRoundingState]:
        if params is None:
            raise ValueError(
                "stochastic_rounding needs the parameters: call `update(grads, state, params)`"
            )
        steps, inner_state = inner.update(
            _bfloat16.widen(updates), state.inner_state, _bfloat16.widen(params), **extra_args
        )
        leaves, treedef = _base.flatten(steps)
        tensors = _base.tensors_like(treedef, params)
        seeds = _base.unpack(_bfloat16.seeds(seed, state.count, len(leaves)))
        out = [_round(*of_one) for of_one in zip(leaves, tensors, seeds, strict=True)]
        return treedef.unflatten(out), StochasticRoundingState(
            optax.safe_increment(state.count), inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@jax.jit  # traced once a shape
def _round(step: jax.Array, param: jax.Array, seed: jax.Array) -> jax.Array:
    """One tensor's update."""
    if not _bfloat16.is_narrow(param):
        return step
    old = param.astype(jnp.float32)
    return _bfloat16.round_at_random(old + step.astype(jnp.float32), seed) - old
