"""The one training step: ``(state, batch) -> (state, metrics)``, jitted, donated, sharded."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import optim, parallel
from jaxclip.train.state import Params, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
ValueAndGrad = Callable[[Params, Batch], tuple[tuple[jax.Array, Metrics], Params]]

LOG_100 = math.log(100.0)


def normalize_images(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 pixels to normalised floats, on the device: ``(x / 255 - mean) / std``.

    Args:
      images: uint8[B, H, W, 3] (floating input is taken as already in 0…255).
      mean: 3 channel means, in 0…1.
      std: 3 channel standard deviations, in 0…1.

    Returns:
      float32[B, H, W, 3].
    """
    # One multiply-add a pixel instead of two divisions and a subtraction.
    scale = jnp.asarray([1.0 / (255.0 * s) for s in std], jnp.float32)
    shift = jnp.asarray([-m / s for m, s in zip(mean, std, strict=True)], jnp.float32)
    return images.astype(jnp.float32) * scale + shift


def make_train_step(
    value_and_grad: ValueAndGrad,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    logit_scale_max: float = LOG_100,
    learning_rate: optax.Schedule | None = None,
    state_shardings: Any = None,
    batch_shardings: Any = None,
) -> jax.stages.Wrapped:
    """Build the jitted step; it donates the state given to it.

    Args:
      value_and_grad: ``(params, batch) -> ((loss, metrics), gradients)``; precision, remat,
        accumulation and freezing live in it.
      tx: any optax transformation. It is handed ``value`` (the loss) and ``grad_fn`` (a second
        gradient on the same batch, as ``optax.contrib.sam(opaque_mode=True)`` wants), used or not.
      ema_decay: decay of the parameters' moving average, 0 for none; warmed up as
        min(decay, (1 + t) / (10 + t)) so that early averages forget the initial values.
      logit_scale_max: upper bound of ``params["logit_scale"]`` after every update (CLIP: ln 100).
      learning_rate: the schedule in ``tx``, to be reported: the count it is given is that of the
        updates made so far, without skipped steps.
      state_shardings: tree of shardings for the state, or None; an optimizer state in host memory
        (:func:`jaxclip.parallel.on_host`) is brought to the device for the update.
      batch_shardings: tree (or one) of shardings for the batch, or None.

    Returns:
      ``step(state, batch) -> (state, metrics)``; metrics are float32 scalars: ``loss``,
      ``grad_norm``, ``logit_scale`` (exponentiated), ``nonfinite_count``, ``nonfinite_streak``,
      ``learning_rate`` (if given), those of the loss, and what :func:`jaxclip.optim.read_metrics`
      found, as means over tensors.

    A gradient that is not finite leaves parameters, averages and the optimizer untouched; it is
    counted, and the step count still moves on, so that the data does.
    """
    tx = optax.with_extra_args_support(tx)
    takes = accepted(tx.update, ("value", "grad_fn"))
    offloaded = state_shardings is not None and parallel.is_on_host(state_shardings.opt_state)

    def apply(state: TrainState, grads: Params, loss: jax.Array, batch: Batch) -> tuple[Any, ...]:
        extra = {"value": loss, "grad_fn": lambda params, _: value_and_grad(params, batch)[1]}
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, **{name: extra[name] for name in takes}
        )
        params = optax.apply_updates(state.params, updates)
        params["logit_scale"] = jnp.minimum(params["logit_scale"], logit_scale_max)
        ema_params = state.ema_params
        if ema_params is not None:
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + count) / (10.0 + count))
            ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
        return params, opt_state, ema_params

    def fetch(state: TrainState, grads: Params) -> tuple[TrainState, Params]:
        # Behind the gradients, so that offloaded states are not beside the activations.
        opt_state, grads = jax.lax.optimization_barrier((state.opt_state, grads))
        opt_state = parallel.to_device(opt_state, state_shardings.opt_state)
        return state._replace(opt_state=opt_state), grads

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, loss_metrics), grads = value_and_grad(state.params, batch)
        if offloaded:
            state, grads = fetch(state, grads)
        grad_norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        # A norm that overflows is no broken gradient: ask the elements only when the norm fails.
        finite = jnp.isfinite(loss) & jax.lax.cond(
            jnp.isfinite(grad_norm), lambda: jnp.bool_(True), lambda: all_finite(grads)
        )
        params, opt_state, ema_params = jax.lax.cond(
            finite,
            lambda: apply(state, grads, loss, batch),
            lambda: (state.params, state.opt_state, state.ema_params),
        )
        bad = 1 - finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            nonfinite_count=state.nonfinite_count + bad,
            nonfinite_streak=(state.nonfinite_streak + 1) * bad,
        )
        updates = state.step - state.nonfinite_count
        rates = {} if learning_rate is None else {"learning_rate": learning_rate(updates)}
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "logit_scale": jnp.exp(params["logit_scale"]),
            "nonfinite_count": new_state.nonfinite_count,
            "nonfinite_streak": new_state.nonfinite_streak,
            **rates,
            **loss_metrics,
            **optimizer_metrics(opt_state),
        }
        return new_state, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    if state_shardings is None:
        return jax.jit(step, donate_argnums=(0,))
    return jax.jit(
        step,
        donate_argnums=(0,),
        in_shardings=(state_shardings, batch_shardings),
        out_shardings=(state_shardings, None),
    )


def accepted(function: Callable[..., Any], names: Sequence[str]) -> list[str]:
    """Which keyword arguments a function takes: optax's SAM, for one, refuses all but its own."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return list(names)
    return [name for name in names if name in parameters]


def all_finite(tree: Any) -> jax.Array:
    """bool[]: whether every element of every array of the tree is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.bool_(True)


def optimizer_metrics(opt_state: optax.OptState) -> Metrics:
    """What the transformations say of themselves, one scalar each (means over tensors)."""
    return {
        f"optim/{name}": jnp.mean(jnp.asarray(value, jnp.float32))
        for name, value in optim.read_metrics(opt_state).items()
    }
