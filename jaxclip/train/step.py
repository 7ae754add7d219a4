"""The one training step: ``(state, batch) -> (state, metrics)``, jitted, donated, sharded.

The whole story of a step is here and in :mod:`jaxclip.train.grad_cache`: :func:`make_gradient` says
what is differentiated, :func:`make_train_step` what is done with the gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import objectives, optim, parallel
from jaxclip.optim.read_metrics import skipped_steps
from jaxclip.train import grad_cache, outputs
from jaxclip.train.guard import Guard
from jaxclip.train.state import Params, TrainState, all_finite, stop_frozen_gradients

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
# (params, state, batch) -> ((loss, (metrics, new state of the objectives)), gradients)
Gradient = Callable[
    [Params, TrainState, Batch], tuple[tuple[jax.Array, tuple[Metrics, Any]], Params]
]

# Key of the batch under which the step puts the rows' places, int32[B].
ROW = "row"

# Metrics under it, and the name of a tower, are its largest attention logits, float32[depth, H].
LARGEST_LOGITS = "watch/tensors/largest_logits_"

LOG_100 = math.log(100.0)


def make_gradient(
    total: objectives.Total,
    towers: outputs.Towers,
    *,
    seed: int = 0,
    is_frozen: Callable[[str], bool] = lambda path: False,
    teacher: outputs.Teacher | None = None,
    num_micro_batches: int = 1,
    mesh: jax.sharding.Mesh | None = None,
    largest_logits: Sequence[str] = (),
    whiten: Callable[[Params, Batch], Params] | None = None,
    seen: Callable[[Params, jax.Array], Params] | None = None,
) -> Gradient:
    """Build the loss of the objectives with its gradient.

    Args:
      total: the objectives.
      towers: the model in training.
      seed: of all randomness in the step.
      is_frozen: whether the parameter at a path has no gradient.
      teacher: where ``teacher/`` outputs come from, or None.
      num_micro_batches: see :func:`jaxclip.train.grad_cache.value_and_grad`.
      mesh: the mesh the batch is sharded over; None for one device.
      largest_logits: towers whose largest attention logits are among the metrics:
        :data:`LARGEST_LOGITS` + tower, float32[depth, H].
      whiten: ``(gradients, batch) -> gradients``, what is done to them before anybody sees them
        (:func:`jaxclip.train.cures.whitening`); None for nothing.
      seen: ``(params, step) -> params``, what the forward pass sees of the parameters
        (:class:`jaxclip.models.sparsity.rules.Sparse`), once for all micro-batches; None for them
        as they are.

    Returns:
      ``(params, state, batch) -> ((loss, (metrics, objective state)), gradients)``; of the state it
      reads ``step``, ``objective`` and the teacher.
    """

    logits = frozenset(f"{tower}_{outputs.LARGEST_LOGITS}" for tower in largest_logits)

    def gradient(params: Params, state: TrainState, batch: Batch) -> Any:
        rows = jnp.arange(next(iter(batch.values())).shape[0], dtype=jnp.int32)
        if mesh is not None:
            rows = jax.lax.with_sharding_constraint(rows, parallel.batch_sharding(mesh))
        batch = {**batch, ROW: rows}
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        context = functools.partial(_context, state=state, key=key, towers=towers, mesh=mesh)

        def forward(params: Params, batch: Batch) -> dict[str, jax.Array]:
            params = stop_frozen_gradients(params, is_frozen)
            ctx = context(params, batch[ROW])

            def options(tower: str, view: str, of_teacher: Batch) -> dict[str, Any]:
                own = towers.train_options(tower, objectives.view_keys(ctx, view))
                return own | total.tower_options(view, {**batch, **of_teacher}, ctx)

            names = total.needs | total.row_needs | logits
            made = outputs.compute(
                names,
                batch,
                towers,
                total.tower_params(params, ctx),
                options,
                teacher=teacher,
                teacher_params=_teacher_params(state),
            )
            given = outputs.fields(names, batch) | made
            by_row = total.rows(params.get("objective", {}), given, ctx)
            kept = (total.needs | logits) & made.keys()
            return {name: made[name] for name in sorted(kept)} | by_row

        def loss(params: Params, made: dict[str, jax.Array], batch: Batch) -> Any:
            params = stop_frozen_gradients(params, is_frozen)
            value, metrics, objective = total.loss(
                params.get("objective", {}),
                state.objective,
                outputs.fields(total.needs, batch) | made,
                context(params, batch[ROW]),
            )
            largest = {
                LARGEST_LOGITS + tower: jnp.max(made[f"{tower}_{outputs.LARGEST_LOGITS}"], axis=0)
                for tower in largest_logits
            }
            return value, (metrics | largest, objective)

        value_and_grad = grad_cache.value_and_grad(
            forward, loss, num_micro_batches=num_micro_batches, mesh=mesh
        )
        if seen is None:
            found, gradients = value_and_grad(params, batch)
            return found, gradients if whiten is None else whiten(gradients, batch)
        made, back = jax.vjp(
            lambda p: seen(stop_frozen_gradients(p, is_frozen), state.step), params
        )
        found, gradients = value_and_grad(made, batch)
        return found, back(gradients if whiten is None else whiten(gradients, batch))[0]

    return gradient


def _teacher_params(state: TrainState) -> Params | None:
    return state.ema_teacher if state.frozen is None else state.frozen


def _context(
    params: Params,
    row: jax.Array,
    *,
    state: TrainState,
    key: jax.Array,
    towers: outputs.Towers,
    mesh: jax.sharding.Mesh | None,
) -> objectives.Context:
    """What the terms may know beside outputs, for the rows ``row`` of a batch."""
    of_teacher = _teacher_params(state) or {}
    return objectives.Context(
        step=state.step,
        key=key,
        row=row,
        logit_scale=params["logit_scale"],
        logit_bias=params.get("logit_bias"),
        teacher_logit_scale=of_teacher.get("logit_scale"),
        mesh=mesh,
        sizes=towers.sizes,
        teacher_own=of_teacher.get("objective", {}),
        own=params.get("objective", {}),
        state=state.objective or {},
    )


@dataclasses.dataclass(frozen=True)
class _Update:
    """What a gradient that counts does to the state; fields as in :func:`make_train_step`."""

    tx: optax.GradientTransformationExtraArgs
    extra_args: Sequence[str]
    guard: Guard | None
    qk_clip: float | None
    logit_scale_max: float | None
    ema_decay: float
    teacher_decay: Callable[[Any], Any] | None

    def __call__(
        self,
        state: TrainState,
        grads: Params,
        objective: Any,
        extra: Mapping[str, Any],
        ruled: Any,
        logits: Mapping[str, jax.Array],
    ) -> TrainState:
        """The state after an update, its counters as they were.

        Args:
          state: before, without what never changes.
          grads: the gradient.
          objective: new state of the objectives.
          extra: what ``extra_args`` may name.
          ruled: the guard's ruling; None without a guard.
          logits: the largest attention logits by tower, float32[depth, H].
        """
        if self.guard is not None:
            grads = self.guard.clip(ruled.clip, grads)
        updates, opt_state = self.tx.update(
            grads, state.opt_state, state.params, **{name: extra[name] for name in self.extra_args}
        )
        if self.guard is not None:
            updates = self.guard.lower(ruled.rate, updates)
        params = optax.apply_updates(state.params, updates)
        if self.qk_clip is not None:
            for tower, largest in logits.items():
                params = {**params, tower: optim.qk_clip(params[tower], largest, self.qk_clip)[0]}
        if self.logit_scale_max is not None:
            params["logit_scale"] = jnp.minimum(params["logit_scale"], self.logit_scale_max)
        ema_params, ema_teacher = self._averages(state, params)
        return state._replace(
            params=params,
            opt_state=opt_state,
            ema_params=ema_params,
            ema_teacher=ema_teacher,
            objective=objective,
        )

    def _averages(self, state: TrainState, params: Params) -> tuple[Any, Any]:
        """The parameters' moving average and the teacher that follows them, where there are any."""
        ema_params, ema_teacher = state.ema_params, state.ema_teacher
        if ema_params is not None:
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(self.ema_decay, (1.0 + count) / (10.0 + count))
            ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
        if ema_teacher is not None and self.teacher_decay is not None:
            rate = 1.0 - self.teacher_decay(state.step)
            ema_teacher = optax.incremental_update(params, ema_teacher, rate)
        return ema_params, ema_teacher


def make_train_step(
    gradient: Gradient,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float = 0.0,
    teacher_decay: Callable[[Any], Any] | None = None,
    logit_scale_max: float | None = LOG_100,
    learning_rate: optax.Schedule | None = None,
    extra_args: Sequence[str] = ("value",),
    qk_clip: float | None = None,
    guard: Guard | None = None,
    watch: Callable[[TrainState, TrainState, Params, Any], Metrics] | None = None,
    state_shardings: Any = None,
    batch_shardings: Any = None,
) -> jax.stages.Wrapped:
    """Build the jitted step; it donates the state given to it.

    Args:
      gradient: ``(params, state, batch) -> ((loss, (metrics, objective state)), gradients)``
        (:func:`make_gradient`); precision, remat, accumulation and freezing live in it.
      tx: any optax transformation.
      ema_decay: decay of the parameters' moving average, 0 for none; warmed up as
        min(decay, (1 + t) / (10 + t)) so that early averages forget the initial values.
      teacher_decay: ``step -> `` decay of a teacher that follows the run, where the state has one.
      logit_scale_max: upper bound of ``params["logit_scale"]`` after every update (CLIP: ln 100);
        None leaves it alone, as a frozen one must be.
      learning_rate: the schedule in ``tx``, to be reported: the count it is given is that of the
        updates made so far, without steps that were skipped here or by ``optim.skip``.
      extra_args: what ``tx.update`` is handed beside the gradient: ``"value"`` (the loss) and
        ``"grad_fn"`` (a second gradient on the same batch, as
        ``optax.contrib.sam(opaque_mode=True)`` wants, which takes nothing else).
      qk_clip: bound of the attention logits, by :func:`jaxclip.optim.qk_clip` after the update of
        the towers whose largest logits the gradient tells; None for none.
      guard: what judges spikes and acts on them; it needs ``state.guard``. None for nothing.
      watch: ``(state before, state after, gradient, what the guard multiplied it by) ->`` more
        metrics, vectors among them (:func:`jaxclip.train.watch.make_tensor_numbers`), or None.
      state_shardings: tree of shardings for the state, or None; an optimizer state in host memory
        (:func:`jaxclip.parallel.on_host`) is brought to the device for the update.
      batch_shardings: tree (or one) of shardings for the batch, or None.

    Returns:
      ``step(state, batch) -> (state, metrics)``; metrics are float32 scalars: ``loss``,
      ``grad_norm``, ``logit_scale`` (exponentiated), ``nonfinite_count``, ``nonfinite_streak``,
      ``learning_rate`` (if given), those of the objectives, and what
      :func:`jaxclip.optim.read_metrics` found, as means over tensors.

    A gradient that is not finite leaves parameters, averages, teacher, objectives' states and the
    optimizer untouched; it is counted, and the step count still moves on, so that the data does.
    """
    tx = optax.with_extra_args_support(tx)
    offloaded = state_shardings is not None and parallel.is_on_host(state_shardings.opt_state)

    apply = _Update(tx, extra_args, guard, qk_clip, logit_scale_max, ema_decay, teacher_decay)

    def fetch(state: TrainState, grads: Params) -> tuple[TrainState, Params]:
        # Behind the gradients, so that offloaded states are not beside the activations.
        opt_state, grads = jax.lax.optimization_barrier((state.opt_state, grads))
        opt_state = parallel.to_device(opt_state, state_shardings.opt_state)
        return state._replace(opt_state=opt_state), grads

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, (own_metrics, objective)), grads = gradient(state.params, state, batch)
        if offloaded:
            state, grads = fetch(state, grads)
        grad_norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        # A norm that overflows is no broken gradient: ask the elements only when the norm fails.
        finite = jnp.isfinite(loss) & jax.lax.cond(
            jnp.isfinite(grad_norm), lambda: jnp.bool_(True), lambda: all_finite(grads)
        )
        extra = {"value": loss, "grad_fn": lambda params, _: gradient(params, state, batch)[1]}
        # What never changes, or changes in any case, stays out of the branches.
        varying = state._replace(frozen=None, guard=None)
        done = finite
        ruled: Any = None
        logits = _largest_logits(own_metrics)
        if guard is not None:
            ruled = guard.rule(state.guard, state.step, loss, grad_norm)
            done = finite & ~guard.skips(ruled.judged)
        new_state = jax.lax.cond(
            done, lambda: apply(varying, grads, objective, extra, ruled, logits), lambda: varying
        )
        if guard is not None:
            reset = done & ruled.judged.spike
            opt_state = guard.reset(reset, new_state.opt_state, lambda: tx.init(state.params))
            new_state = new_state._replace(opt_state=opt_state)
        bad = 1 - finite.astype(jnp.int32)
        new_state = new_state._replace(
            step=state.step + 1,
            nonfinite_count=state.nonfinite_count + bad,
            nonfinite_streak=(state.nonfinite_streak + 1) * bad,
            frozen=state.frozen,
        )
        updates = state.step - state.nonfinite_count
        watched = _qk_clip_metrics(logits, qk_clip)
        if guard is not None:
            updates -= state.guard.skipped
            kept = guard.remember(state.guard, ruled.judged, state.step, loss, grad_norm)
            new_state = new_state._replace(guard=kept)
            watched |= guard.metrics(kept, ruled.judged, ruled.rate)
        if watch is not None:
            watched |= watch(state, new_state, grads, 1.0 if guard is None else ruled.clip)
        updates -= skipped_steps(state.opt_state)
        rates = {} if learning_rate is None else {"learning_rate": learning_rate(updates)}
        if rates and "watch/rate_factor" in watched:
            rates = {"learning_rate": rates["learning_rate"] * ruled.rate}
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "logit_scale": jnp.exp(new_state.params["logit_scale"]),
            "nonfinite_count": new_state.nonfinite_count,
            "nonfinite_streak": new_state.nonfinite_streak,
            **rates,
            **own_metrics,
            **optimizer_metrics(new_state.opt_state),
            **watched,
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


def _largest_logits(metrics: Metrics) -> dict[str, jax.Array]:
    """The largest attention logits by tower, float32[depth, H], where a gradient gives them."""
    return {
        name.removeprefix(LARGEST_LOGITS): value
        for name, value in metrics.items()
        if name.startswith(LARGEST_LOGITS)
    }


def _qk_clip_metrics(logits: Mapping[str, jax.Array], qk_clip: float | None) -> dict[str, Any]:
    """The largest logit of each tower, and the share of heads above the bound, if there is one."""
    metrics = {f"qk_clip/largest_{tower}": jnp.max(value) for tower, value in logits.items()}
    if qk_clip is not None and logits:
        above = [jnp.ravel(value > qk_clip) for value in logits.values()]
        metrics["qk_clip/clipped"] = jnp.mean(jnp.concatenate(above), dtype=jnp.float32)
    return metrics


def optimizer_metrics(opt_state: optax.OptState) -> Metrics:
    """What the transformations say of themselves, one scalar each (means over tensors)."""
    return {
        f"optim/{name}": jnp.mean(jnp.asarray(value, jnp.float32))
        for name, value in optim.read_metrics(opt_state).items()
    }
