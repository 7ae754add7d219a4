"""Kahan summation for bfloat16 parameters: what rounding takes from a step, the next one gets."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _bfloat16


class KahanSummationState(NamedTuple):
    """State of :func:`kahan_summation`.

    Attributes:
      compensation: what parameters lack, a tree like them, in bfloat16; None for tensors of other
        dtypes.
      inner_state: of the wrapped optimizer.
    """

    compensation: Any
    inner_state: Any


def kahan_summation(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains bfloat16 parameters with steps that are smaller than their rounding.

    A bfloat16 number has 8 bits of mantissa: a step of less than 1/512 of a weight is lost, and
    training stalls. Here the lost part is kept and added to the next step. With u the update of
    ``inner``,

    .. math::

      y = u + c, \qquad p' = \mathrm{round}(p + y), \qquad c \leftarrow y - (p' - p),

    and the update that comes out is :math:`p' - p`, in float32, so that ``optax.apply_updates``
    gives exactly p'. (Do not cast updates to bfloat16 on the way.) ``inner`` sees gradients and
    parameters as float32; its moments are float32 unless it has a ``mu_dtype``. Parameters of other
    dtypes are passed by.

    Parameter and compensation together take the 4 bytes of a float32 parameter, so nothing is saved
    beside float32 parameters with a bfloat16 forward pass but the cast, and half of what is
    communicated. :func:`jaxclip.optim.stochastic_rounding` takes 2 bytes.

    State: one bfloat16 copy of the parameters and that of ``inner``. Cost: elementwise.

    Args:
      inner: any optimizer, learning rate included.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`KahanSummationState`. Its
      ``update`` needs the parameters.

    Raises:
      ValueError: from ``update``, without parameters.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from jaxclip import optim
      >>> tx = optim.kahan_summation(optax.sgd(1.0))
      >>> params = jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(params)
      >>> for _ in range(100):  # each of which bfloat16 would round away
      ...     updates, state = tx.update(jnp.full(1, -1e-3, jnp.bfloat16), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> round(float(params[0]), 2)
      1.1

    References:
      Zamirai et al., `Revisiting BFloat16 Training <https://arxiv.org/abs/2010.06192>`_, 2020.
    """
    _base.check_inner("kahan_summation", inner)
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: Any) -> KahanSummationState:
        return KahanSummationState(
            compensation=jax.tree.map(_compensation, params),
            inner_state=inner.init(_bfloat16.widen(params)),
        )

    def update_fn(
        updates: Any, state: KahanSummationState, params: Any = None, **extra_args: Any
    ) -> tuple[Any, KahanSummationState]:
        if params is None:
            raise ValueError(
                "kahan_summation needs the parameters: call `update(grads, state, params)`"
            )
        wide = _bfloat16.widen(params)
        steps, inner_state = inner.update(
            _bfloat16.widen(updates), state.inner_state, wide, **extra_args
        )
        leaves, treedef = _base.flatten(steps)
        tensors = _base.tensors_like(treedef, params)
        kept = _base.matching(treedef, None, state.compensation)
        # States of old versions hold arrays of size zero where these hold None.
        shapes = [
            np.shape(p if _bfloat16.is_narrow(p) else k) for p, k in zip(tensors, kept, strict=True)
        ]
        lacking = _base.matching(treedef, shapes, state.compensation)
        pairs = [_add(*each) for each in zip(leaves, tensors, lacking, strict=True)]
        out, compensation = ([pair[i] for pair in pairs] for i in range(2))
        return treedef.unflatten(out), KahanSummationState(
            treedef.unflatten(compensation), inner_state
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _compensation(leaf: Any) -> jax.Array | None:
    """What a parameter lacks before the first step; Orbax can't save an array of size zero."""
    if _bfloat16.is_narrow(leaf):
        return jnp.zeros_like(leaf)
    return None


def _add(
    step: jax.Array, param: jax.Array, lacking: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """One tensor's update, and what it lacks after that.

    Args:
      step: of the wrapped optimizer.
      param: the parameter.
      lacking: what it lacks before.
    """
    if lacking is None or not _bfloat16.is_narrow(param):
        return step, lacking
    old = param.astype(jnp.float32)
    wanted = step.astype(jnp.float32) + lacking.astype(jnp.float32)
    done = _bfloat16.round_to_nearest(old + wanted) - old
    return done, (wanted - done).astype(lacking.dtype)
