"""From a configuration to everything a step needs: model, optimizer, mesh, shardings, step."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import config_check, models, objectives, optim, parallel
from jaxclip import fields as field_lib
from jaxclip.config import Config
from jaxclip.models import reductions
from jaxclip.models.products import rules
from jaxclip.models.sparsity import rules as sparsity
from jaxclip.train import cures, low_rank, setup_checks, state_io, towers
from jaxclip.train import guard as guard_lib
from jaxclip.train import init_from as init_from_lib
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib
from jaxclip.train import teacher as teacher_lib
from jaxclip.train import watch as watch_lib
from jaxclip.train.towers import build_model as build_model


class Experiment(NamedTuple):
    """What a configuration builds; nothing in it has touched data or allocated parameters.

    Attributes:
      config: the resolved configuration.
      mesh: axes ``data``, ``fsdp``, ``tensor``.
      model: the encoders (:class:`jaxclip.models.CLIP`).
      total: the objectives.
      batch_spec: arrays of a batch by key (:mod:`jaxclip.fields`).
      teacher: the teacher's part, without a teacher empty.
      guard: what judges spikes, or None.
      create_state: ``rng -> TrainState`` without frozen weights, traceable.
      abstract_state: TrainState of ``jax.ShapeDtypeStruct`` with shardings.
      state_shardings: TrainState of shardings.
      batch_sharding: sharding of the leading axis of every array of a batch.
      train_step: jitted ``(state, batch) -> (state, metrics)``.
      encode_image: ``(params, uint8 images) -> float32[B, D]``, normalising on the device.
      encode_text: ``(params, int32 tokens) -> float32[B, D]``.
      encode_tokens: ``(params, uint8 images) -> float32[B, C]``, the mean of the patches' tokens;
        None where evaluation leaves some of them out.
      towers: the model with what stands before it.
      sparse: what is done to the parameters before the towers see them.
    """

    config: Config
    mesh: jax.sharding.Mesh
    model: models.CLIP
    total: objectives.Total
    batch_spec: field_lib.BatchSpec
    teacher: teacher_lib.Setup
    guard: guard_lib.Guard | None
    create_state: Callable[..., state_lib.TrainState]
    abstract_state: state_lib.TrainState
    state_shardings: state_lib.TrainState
    batch_sharding: jax.sharding.NamedSharding
    train_step: jax.stages.Wrapped
    encode_image: Callable[[Any, jax.Array], jax.Array]
    encode_text: Callable[[Any, jax.Array], jax.Array]
    encode_tokens: Callable[[Any, jax.Array], jax.Array] | None
    towers: towers.ModelTowers
    sparse: sparsity.Sparse

    def init_state(self) -> state_lib.TrainState:
        """The state before the first step: initial parameters, or those of ``init_from``."""
        rng = jax.random.key(self.config["seed"])
        shardings = state_lib.to_save(self.state_shardings)
        state = parallel.init_sharded(self.create_state, rng, shardings)
        if self.config["init_from"]:
            params, report = self.started(state.params)
            if jax.process_index() == 0:
                print("\n".join(report.lines(self.config["init_from"])), flush=True)
            del state  # its optimizer may depend on the parameters: make it of the new ones
            again = functools.partial(self.create_state, rng)
            state = jax.jit(again, out_shardings=shardings)(params)
        return self.with_frozen(state)

    def started(self, initial: Any) -> tuple[Any, init_from_lib.Report]:
        """Initial parameters with those of ``config.init_from`` in their place, and a report."""
        source = init_from_lib.open_source(self.config["init_from"])
        given = source.read(None)
        if own := source.read_own(initial.get("objective", {})):
            given = {**given, "objective": own}
        return init_from_lib.merge(
            initial,
            given,
            exclude=self.config["init_from_exclude"],
            path=source.path,
        )

    def with_frozen(self, state: state_lib.TrainState) -> state_lib.TrainState:
        """A state out of a checkpoint with what that does not hold."""
        if state.guard is None and self.guard is not None:  # it watches only from here on
            shardings = self.state_shardings.guard
            state = state._replace(guard=jax.jit(self.guard.init, out_shardings=shardings)())
        return state._replace(frozen=self.teacher.load())

    def abstract_batch(self, global_batch_size: int | None = None) -> dict[str, Any]:
        """Shapes, dtypes and shardings of a global batch."""
        size = global_batch_size or self.config["global_batch_size"]
        return {
            key: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=self.batch_sharding)
            for key, (shape, dtype) in field_lib.shapes(
                self.batch_spec, size, batch_sizes(self.config)
            ).items()
        }


def build(config: Config, *, devices: Sequence[Any] | None = None) -> Experiment:
    """Build an experiment on the given (default: all) devices.

    Args:
      config: resolved configuration (:func:`jaxclip.config.resolve`).
      devices: devices of the mesh; may be those of an ahead-of-time topology.

    Raises:
      ValueError: the global batch does not divide over the mesh, an unknown objective, optimizer,
        option or sharding preset, an output that can't be made, a teacher that is missing or does
        not fit, or a parameter that does not divide.
    """
    mesh = parallel.make_mesh(config["mesh"], devices=devices)
    setup_checks.check_batch(config, mesh)
    total = objectives.from_config(config["objective"], config["loss"])
    total.check_run(config["global_batch_size"], config["teacher"]["kind"])
    sizes = towers.model_sizes(config)
    tx = _optimizer(config, sizes)
    guard = guard_lib.from_config(config)
    sparse = sparsity.from_config(config["sparsity"], config["total_steps"])
    create_state = _state_maker(config, total, tx, guard, sparse)
    shapes = jax.eval_shape(create_state, jax.random.key(0))
    setup_checks.check_guard(config, guard, shapes.opt_state)
    shardings = _state_shardings(config, shapes, mesh)
    abstract_state = parallel.abstract(shapes, shardings)
    own = _towers(config, shapes.params, shardings.params, mesh)
    teacher = teacher_lib.build(config, own, total.needs | total.row_needs, mesh)
    abstract_state = abstract_state._replace(frozen=teacher.abstract())
    shardings = shardings._replace(frozen=teacher.shardings)
    batch_spec = in_patches(config, sizes, teacher_lib.batch_spec(teacher, total.fields))
    setup_checks.check_objectives(total, sizes, batch_spec, teacher)
    setup_checks.check_micro_batches(config, sizes, batch_spec)
    qk_clip = cures.qk_clip_threshold(config, sizes, shapes.params, batch_spec)
    gradient = _gradient(config, total, own, teacher, sparse, mesh, looks=qk_clip is not None)
    batch_sharding = parallel.batch_sharding(mesh)
    train_step = step_lib.make_train_step(
        gradient,
        tx,
        ema_decay=config["ema_decay"],
        teacher_decay=teacher.decay,
        logit_scale_max=config_check.logit_scale_limit(config),
        learning_rate=optim.learning_rate_schedule(config["optim"], config["total_steps"]),
        extra_args=("grad_fn",) if config["optim"].get("sam") else ("value",),
        qk_clip=qk_clip,
        guard=guard,
        watch=watch_lib.make_tensor_numbers(config) if config["watch"]["enabled"] else None,
        state_shardings=shardings,
        batch_shardings=batch_sharding,
    )
    reduction = reductions.from_config(config["evaluate"]["token_reduction"])
    encode_image, encode_text = encoders(dataclasses.replace(own, reduction=reduction), sparse)
    return Experiment(
        config=config,
        mesh=mesh,
        model=own.model,
        total=total,
        batch_spec=batch_spec,
        teacher=teacher,
        guard=guard,
        create_state=create_state,
        abstract_state=abstract_state,
        state_shardings=shardings,
        batch_sharding=batch_sharding,
        train_step=train_step,
        encode_image=encode_image,
        encode_text=encode_text,
        encode_tokens=token_encoder(own, sparse) if reduction is None else None,
        towers=own,
        sparse=sparse,
    )


def _optimizer(config: Config, sizes: models.CLIPConfig) -> Any:
    """The optax transformation; statistics of batch norms are frozen, and muP has its rates."""
    section = config_check.frozen_statistics(config["optim"], sizes.image.has_statistics)
    return cures.with_mup(optim.from_config(section, config["total_steps"]), config, sizes)


def _state_shardings(
    config: Config, shapes: state_lib.TrainState, mesh: jax.sharding.Mesh
) -> state_lib.TrainState:
    """Where each array of the state lies, frozen weights apart."""
    shardings = parallel.specs_for(shapes, parallel.sharding_rules(config["sharding"]), mesh)
    if shapes.guard is not None:  # a few numbers, which every device judges by
        whole = parallel.replicated(mesh)
        shardings = shardings._replace(guard=jax.tree.map(lambda _: whole, shapes.guard))
    if config["offload_optimizer_state"]:
        on_host = parallel.on_host(shapes.opt_state, shardings.opt_state, mesh)
        shardings = shardings._replace(opt_state=on_host)
    return shardings


def _towers(
    config: Config, params: Any, shardings: Any, mesh: jax.sharding.Mesh
) -> towers.ModelTowers:
    """The model with what stands before it.

    Args:
      config: resolved configuration.
      params: shapes of the parameters.
      shardings: of the parameters.
      mesh: of the shardings.

    Raises:
      ValueError: ``precision.products`` names a layer that there is not.
    """
    products = rules.from_config(config["precision"]["products"])
    rules.check_used(products, rules.layer_names(state_io.named_leaves(params)))
    model = build_model(config, mesh, shardings)
    return towers.from_config(config, model, shardings, products=products)


def _gradient(
    config: Config,
    total: objectives.Total,
    own: towers.ModelTowers,
    teacher: teacher_lib.Setup,
    sparse: sparsity.Sparse,
    mesh: jax.sharding.Mesh,
    *,
    looks: bool,
) -> step_lib.Gradient:
    """The gradient of a batch (:func:`jaxclip.train.step.make_gradient`).

    Args:
      config: resolved configuration.
      total: the objectives.
      own: the towers.
      teacher: the teacher's part.
      sparse: what is done to the parameters before the towers see them.
      mesh: of the batch.
      looks: whether the largest attention logits are wanted, too.
    """
    trained, whiten = cures.whitening(config, own, mesh)
    return step_lib.make_gradient(
        total,
        trained,
        seed=config["seed"],
        is_frozen=functools.partial(config_check.is_frozen, config),
        teacher=teacher.teacher,
        num_micro_batches=config["num_micro_batches"],
        mesh=mesh,
        largest_logits=("image", "text") if looks else (),
        whiten=whiten,
        seen=sparse if sparse.rules else None,
    )


def _state_maker(
    config: Config,
    total: objectives.Total,
    tx: Any,
    guard: guard_lib.Guard | None,
    sparse: sparsity.Sparse,
) -> Callable[..., state_lib.TrainState]:
    """``(rng, params=None) -> TrainState``, with the objectives' own parameters and states."""
    model, sizes = build_model(config), towers.model_sizes(config)

    def init(rng: jax.Array) -> Any:
        params = model.init(rng)
        if config[low_rank.KEY]["rank"]:
            key = jax.random.fold_in(rng, zlib.crc32(low_rank.KEY.encode()))
            params[low_rank.KEY] = low_rank.init(params, config[low_rank.KEY], key)
        params |= sparse.init(params)
        own = total.init_params(rng, sizes)
        return {**params, "objective": own} if own else params

    def create(rng: jax.Array, params: Any = None) -> state_lib.TrainState:
        return state_lib.create_state(
            init if params is None else lambda rng: params,
            tx,
            rng,
            with_ema=config["ema_decay"] > 0,
            with_ema_teacher=config["teacher"]["kind"] == "ema",
            objective_state=lambda: total.init_state(sizes),
            guard_state=lambda: None if guard is None else guard.init(),
        )

    return create


def encoders(
    own: towers.ModelTowers, sparse: sparsity.Sparse | None = None
) -> tuple[Callable[[Any, jax.Array], jax.Array], Callable[[Any, jax.Array], jax.Array]]:
    """``encode_image`` on uint8 images and ``encode_text`` on tokens, as evaluation uses them.

    Where weights are made sparse they are those of the end of the run.
    """
    seen = sparse or sparsity.Sparse()

    def encode_image(params: Any, images: jax.Array) -> jax.Array:
        return own.encode(seen(params), "image", images)

    def encode_text(params: Any, tokens: jax.Array) -> jax.Array:
        return own.encode(seen(params), "text", tokens)

    return encode_image, encode_text


def token_encoder(
    own: towers.ModelTowers, sparse: sparsity.Sparse
) -> Callable[[Any, jax.Array], jax.Array]:
    """The mean of the patches' tokens, as objectives see them: float32[B, C] of uint8 images."""

    def encode_tokens(params: Any, images: jax.Array) -> jax.Array:
        tokens = own.features(sparse(params), "image", images).tokens
        return jnp.mean(tokens.astype(jnp.float32), axis=1)

    return encode_tokens


def batch_sizes(config: Config) -> field_lib.Sizes:
    """What the shapes of a batch depend on."""
    return field_lib.Sizes(config["data"]["image_size"], config["tokenizer"]["context_length"])


def in_patches(config: Config, sizes: Any, batch_spec: field_lib.BatchSpec) -> field_lib.BatchSpec:
    """The batch with pictures as patches, where ``data.patch_counts`` says so.

    Raises:
      ValueError: the image tower takes squares only.
    """
    counts = config["data"]["patch_counts"]
    if not counts:
        return batch_spec
    if not getattr(sizes.image, "max_patches", 0) or sizes.image.first_layer == "tract":
        raise ValueError(
            f"data.patch_counts={list(counts)} is for image towers that take patch sequences: set "
            "model.image.max_patches, and no first_layer='tract'; or data.patch_counts=[]"
        )
    return field_lib.as_patches(batch_spec, sizes.image.patch_size, counts)


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
