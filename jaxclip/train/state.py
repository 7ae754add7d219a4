"""The training state: everything a run needs to go on, as one pytree of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Params = Any


class TrainState(NamedTuple):
    """State of a training run.

    There is no random key in it: a step's randomness is a function of (seed, step, row) and its
    data one of (seed, step), so the step count is the position of both.

    Attributes:
      step: int32[], updates done.
      params: nested dict of float32 arrays; an objective's own are under ``objective``.
      opt_state: state of the optax transformation.
      ema_params: moving average of ``params`` (same tree), or None when switched off.
      nonfinite_count: int32[], steps skipped because their gradient was not finite.
      nonfinite_streak: int32[], how many of the latest steps in a row were skipped.
      objective: what objectives keep and gradients do not train, by name of the term.
      ema_teacher: parameters of a teacher that follows the run, or None.
      frozen: parameters of a teacher that stays as it is, or None. They are read from elsewhere
        and left out of checkpoints (:func:`to_save`).
      guard: what the judgement of spikes remembers (:class:`jaxclip.train.guard.GuardState`), or
        None where nothing watches.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None
    nonfinite_count: jax.Array
    nonfinite_streak: jax.Array
    objective: Any = {}  # noqa: RUF012 (never changed in place)
    ema_teacher: Params | None = None
    frozen: Params | None = None
    guard: Any = None


def create_state(
    init: Callable[[jax.Array], Params],
    tx: optax.GradientTransformation,
    rng: jax.Array,
    *,
    with_ema: bool = False,
    with_ema_teacher: bool = False,
    objective_state: Callable[[], Any] = dict,
    guard_state: Callable[[], Any] = lambda: None,
) -> TrainState:
    """Build the state before the first step; traceable, so that it can be initialised sharded.

    Args:
      init: ``rng -> params``.
      tx: the optimizer.
      rng: a PRNG key.
      with_ema: keep a moving average of the parameters, starting at their initial values.
      with_ema_teacher: keep a teacher that starts at the initial values.
      objective_state: makes what objectives keep.
      guard_state: makes what the judgement of spikes remembers.

    Returns:
      A :class:`TrainState` at step 0.
    """
    params = init(rng)
    # Separate buffers: the step donates its state, and one buffer can't be donated twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if with_ema else None,
        nonfinite_count=jnp.zeros((), jnp.int32),
        nonfinite_streak=jnp.zeros((), jnp.int32),
        objective=objective_state(),
        ema_teacher=jax.tree.map(jnp.copy, params) if with_ema_teacher else None,
        guard=guard_state(),
    )


def to_save(state: TrainState) -> TrainState:
    """What a checkpoint holds of a state: all but weights that are read from elsewhere."""
    return state._replace(frozen=None)


def parameter_path(path: tuple[Any, ...]) -> str:
    """``"image/blocks_0/attention/query/kernel"`` of a key path of ``jax.tree_util``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def stop_frozen_gradients(params: Params, is_frozen: Callable[[str], bool]) -> Params:
    """Cut the gradient of frozen parameters, so that no backward pass is spent on them.

    Args:
      params: nested dict of arrays.
      is_frozen: of a path such as ``image/blocks_0/mlp/up/kernel``.

    Returns:
      The same tree; frozen leaves carry no gradient.
    """

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(leaf) if is_frozen(parameter_path(path)) else leaf

    return jax.tree_util.tree_map_with_path(cut, params)


def all_finite(tree: Any) -> jax.Array:
    """bool[]: whether every element of every array of the tree is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)


_all_finite = jax.jit(all_finite)


def what_is_not_finite(state: TrainState) -> str:
    """``"gradient was"`` or ``"parameters are"`` if the state should not be saved, else empty."""
    if int(state.nonfinite_streak):
        return "gradient was"
    return "" if bool(_all_finite(state.params)) else "parameters are"
