"""A whole run as one compiled function of rate, seed and plan: the trainer's own step in a loop.

A rule, a precision and a model are compiled once; learning rate, seed and what an injector does are
inputs. The transformation is made by :func:`jaxclip.optim.from_config` with a rate of 1, and its
updates are multiplied by the rate: the same for all optimizers that multiply by theirs last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxclip import config_check, objectives, optim
from jaxclip.config import Config
from jaxclip.lab import moments, precision, rewinds
from jaxclip.lab.data import Pairs
from jaxclip.lab.injectors import Plan
from jaxclip.models import attention_logits
from jaxclip.train import guard as guard_lib
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import towers

# Examples of the separate pass that attention logits are read from.
_LOGIT_EXAMPLES = 16


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled run.

    Attributes:
      names: paths of the parameters' tensors.
      run: ``(rate, seed, plan) -> {name: float32[T] or float32[]}``.
      spare: rows that the plan must have behind its T, for batches that are passed over.
    """

    names: tuple[str, ...]
    run: Callable[[float, int, Plan], dict[str, np.ndarray]]
    spare: int = 0


def parameter_names(config: Config) -> tuple[str, ...]:
    """Paths of the parameters' tensors, in the order of plans; nothing is computed."""
    shapes = jax.eval_shape(towers.build_model(config).init, jax.random.key(0))
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    return tuple(state_lib.parameter_path(path) for path, _ in paths)


class Shared(NamedTuple):
    """What all rules of a model and a precision have in common, compiled once."""

    gradient: step_lib.Gradient
    init: Callable[[jax.Array], Any]
    evaluate: Callable[[Any, Any], dict[str, jax.Array]]


def share(config: Config, format_name: str) -> Shared:
    """Build what the rules of a model and a precision share; it compiles at the first use.

    Args:
      config: resolved training configuration of any rule.
      format_name: of a precision (:func:`jaxclip.lab.precision.lookup`).

    Raises:
      ValueError: an unknown precision, or an objective that wants more than pairs.
    """
    model = towers.build_model(config)
    plain = towers.from_config(config, model)
    quantize = precision.lookup(format_name)
    own: Any = plain if quantize is None else precision.QuantizedTowers(plain, quantize)
    total = objectives.from_config(config["objective"], config["loss"])
    total.check(own.sizes, None)
    if set(total.fields) - {"image", "text"}:
        more = ", ".join(sorted(set(total.fields) - {"image", "text"}))
        raise ValueError(
            f"train.objective wants {more} of the data; the lab has one picture and one caption a "
            "pair, so choose an objective that needs no more"
        )
    gradient = step_lib.make_gradient(total, own, seed=config["seed"])

    def evaluate(params: Any, held_out: Any) -> dict[str, jax.Array]:
        """Loss of the raw parameters on held-out pairs, and the largest attention logit."""
        images, tokens = held_out
        state = state_lib.create_state(lambda key: params, optax.identity(), jax.random.key(0))
        (loss, _), _ = gradient(params, state, {"image": images, "text": tokens})
        some = images[:_LOGIT_EXAMPLES]
        pixels = towers.normalize_images(some, plain.image_mean, plain.image_std)
        logits = attention_logits.largest_attention_logits(model.image, params["image"], pixels)
        return {"held_out_loss": loss, "attention_logit": jnp.max(logits)}

    return Shared(gradient, jax.jit(model.init), jax.jit(evaluate))


def build(
    config: Config, shared: Shared, pairs: Pairs, held_out: Pairs, watch: tuple[str, ...] = ()
) -> Program:
    """Build the program of a rule, a precision and a model; it compiles at the first call.

    Args:
      config: resolved training configuration with ``optim.learning_rate`` = 1.
      shared: of the same model (:func:`share`).
      pairs: training data.
      held_out: what the final loss is measured on, too.
      watch: patterns of tensors whose RMS is recorded (:mod:`jaxclip.lab.moments`).

    Raises:
      ValueError: what :func:`jaxclip.optim.from_config` refuses.
    """
    rule = optim.from_config(config["optim"], config["total_steps"])
    steps = jax.jit(
        _loop(config, shared.gradient, rule, watch), compiler_options=_compiler_options()
    )
    data, evaluation = jax.tree.map(jnp.asarray, (pairs[:2], held_out[:2]))

    def once(rate: float, seed: int, plan: Plan) -> dict[str, np.ndarray]:
        params = shared.init(jax.random.key(seed))
        params, curves = steps(params, jnp.float32(rate), jnp.uint32(seed), plan, data)
        out = {**curves, **shared.evaluate(params, evaluation)}
        return {name: np.asarray(value) for name, value in out.items()}

    def call(rate: float, seed: int, plan: Plan) -> dict[str, np.ndarray]:
        return rewinds.run(lambda rows: once(rate, seed, rows), plan, config)

    return Program(parameter_names(config), call, rewinds.spare(config))


def _loop(
    config: Config, gradient: step_lib.Gradient, rule: Any, watch: tuple[str, ...]
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """``(params, rate, seed, plan, (images, tokens)) -> (params, curves)``, traceable."""
    limit = config_check.logit_scale_limit(config)
    guard = guard_lib.from_config(config)

    def run(
        params: Any, rate: jax.Array, seed: jax.Array, plan: Plan, data: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        key = jax.random.key(seed)
        state = state_lib.create_state(
            lambda key: params,
            _scaled(rule, rate),
            key,
            guard_state=lambda: None if guard is None else guard.init(),
        )

        def body(state: Any, at: Plan) -> tuple[Any, Any]:
            drawn = jax.random.fold_in(key, state.step)
            state = state._replace(params=_change_parameters(state.params, at, drawn))
            step = step_lib.make_train_step(
                _injected(gradient, at, drawn),
                _scaled(rule, rate * at.rate),
                logit_scale_max=limit,
                guard=guard,
            )
            before = state.opt_state
            state, metrics = step(state, _batch(data, at, drawn))
            seen = moments.rms(before, state.opt_state, config["optim"], watch)
            return state, {**metrics, **seen}

        state, curves = jax.lax.scan(body, state, plan)
        return state.params, curves

    return run


def _compiler_options() -> dict[str, Any]:
    """On CPUs: a third less time in the compiler, and steps that take no longer."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def _scaled(rule: optax.GradientTransformation, rate: Any) -> optax.GradientTransformation:
    return optax.chain(rule, optax.scale(rate))


def _injected(gradient: step_lib.Gradient, at: Plan, key: jax.Array) -> step_lib.Gradient:
    """The gradient, as the plan has it at a step."""

    def injected(params: Any, state: Any, batch: Any) -> Any:
        value, grads = gradient(params, state, batch)

        def change() -> Any:
            flat, unravel = ravel_pytree(grads)
            flat = flat * _per_element(jnp.asarray(at.gradient), grads)
            drawn = jax.random.normal(key, flat.shape)
            length = at.direction * jnp.linalg.norm(flat) / jnp.linalg.norm(drawn)
            # Where nothing is added a gradient that is not finite must stay what it is.
            return unravel(jnp.where(at.direction != 0, flat + length * drawn, flat))

        def noisy(grads: Any) -> Any:
            flat, unravel = ravel_pytree(grads)
            size = jnp.linalg.norm(flat) / flat.size**0.5
            drawn = student_t(jax.random.fold_in(key, 1), jnp.asarray(at.df), flat.shape)
            return unravel(flat + at.tail * size * drawn)

        touched = jnp.any(at.gradient != 1) | (at.direction != 0)
        grads = jax.lax.cond(touched, change, lambda: grads)
        return value, jax.lax.cond(at.tail != 0, noisy, lambda grads: grads, grads)

    return injected


def student_t(key: jax.Array, df: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32[shape] of Student's t, by Bailey's polar method (1994, Math. Comp. 62): one formula
    for any degrees of freedom, where ``jax.random.t`` draws from a gamma by rejection."""
    u, v = jax.random.uniform(key, (2, *shape), minval=jnp.finfo(jnp.float32).tiny)
    return jnp.sqrt(df * jnp.expm1(-2.0 / df * jnp.log(u))) * jnp.cos(2.0 * jnp.pi * v)


def _change_parameters(params: Any, at: Plan, key: jax.Array) -> Any:
    """The parameters before a step: ``weight`` and ``logit_scale`` of the plan."""

    def change() -> Any:
        flat, unravel = ravel_pytree(params)
        sizes = np.asarray([leaf.size for leaf in jax.tree.leaves(params)])
        starts = np.cumsum(sizes) - sizes
        # One element of each tensor; the same one whatever the factor.
        places = starts + jnp.floor(jax.random.uniform(key, sizes.shape) * sizes).astype(jnp.int32)
        return unravel(flat.at[places].multiply(at.weight))

    params = jax.lax.cond(jnp.any(at.weight != 1), change, lambda: params)
    scale = params["logit_scale"]
    return {**params, "logit_scale": jnp.where(jnp.isnan(at.logit_scale), scale, at.logit_scale)}


def _per_element(factors: jax.Array, tree: Any) -> jax.Array:
    """float32[all elements]: the factor of each element's tensor."""
    sizes = np.asarray([leaf.size for leaf in jax.tree.leaves(tree)])
    return jnp.repeat(factors, sizes, total_repeat_length=int(sizes.sum()))


def _batch(data: Any, at: Plan, key: jax.Array) -> dict[str, jax.Array]:
    images, tokens = data[0][at.image], data[1][at.text]

    def noise() -> jax.Array:
        return jax.random.bits(key, images.shape, jnp.uint8)

    return {"image": jax.lax.cond(at.noise > 0, noise, lambda: images), "text": tokens}
