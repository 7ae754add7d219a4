"""From a configuration to everything a step needs: model, optimizer, mesh, shardings, step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip import config_check, losses, models, optim, parallel
from jaxclip.config import Config
from jaxclip.models import presets
from jaxclip.train import state as state_lib
from jaxclip.train import step as step_lib


class Experiment(NamedTuple):
    """What a configuration builds; nothing in it has touched data or allocated parameters.

    Attributes:
      config: the resolved configuration.
      mesh: axes ``data``, ``fsdp``, ``tensor``.
      model: the encoders (:class:`jaxclip.models.CLIP`).
      create_state: ``rng -> TrainState``, traceable.
      abstract_state: TrainState of ``jax.ShapeDtypeStruct`` with shardings.
      state_shardings: TrainState of shardings.
      batch_sharding: sharding of the leading axis of every array of a batch.
      train_step: jitted ``(state, batch) -> (state, metrics)``.
      encode_image: ``(params, uint8 images) -> float32[B, D]``, normalising on the device.
      encode_text: ``(params, int32 tokens) -> float32[B, D]``.
    """

    config: Config
    mesh: jax.sharding.Mesh
    model: models.CLIP
    create_state: Callable[[jax.Array], state_lib.TrainState]
    abstract_state: state_lib.TrainState
    state_shardings: state_lib.TrainState
    batch_sharding: jax.sharding.NamedSharding
    train_step: jax.stages.Wrapped
    encode_image: Callable[[Any, jax.Array], jax.Array]
    encode_text: Callable[[Any, jax.Array], jax.Array]

    def init_state(self) -> state_lib.TrainState:
        """Initialise the state, each device computing only its own shards."""
        rng = jax.random.key(self.config["seed"])
        return parallel.init_sharded(self.create_state, rng, self.state_shardings)

    def abstract_batch(self, global_batch_size: int | None = None) -> dict[str, Any]:
        """Shapes, dtypes and shardings of a global batch."""
        size = global_batch_size or self.config["global_batch_size"]
        side = self.config["data"]["image_size"]
        length = self.config["tokenizer"]["context_length"]
        shape = functools.partial(jax.ShapeDtypeStruct, sharding=self.batch_sharding)
        return {
            "image": shape((size, side, side, 3), jnp.uint8),
            "text": shape((size, length), jnp.int32),
        }


def build(config: Config, *, devices: Sequence[Any] | None = None) -> Experiment:
    """Build an experiment on the given (default: all) devices.

    Args:
      config: resolved configuration (:func:`jaxclip.config.resolve`).
      devices: devices of the mesh; may be those of an ahead-of-time topology.

    Raises:
      ValueError: the global batch does not divide over the mesh, an unknown loss, optimizer,
        option or sharding preset, or a parameter that does not divide.
    """
    mesh = parallel.make_mesh(config["mesh"], devices=devices)
    check_batch(config, mesh)
    model = build_model(config)
    tx = optim.from_config(config["optim"], config["total_steps"])
    create_state = functools.partial(
        state_lib.create_state, model.init, tx, with_ema=config["ema_decay"] > 0
    )
    shapes = jax.eval_shape(create_state, jax.random.key(0))
    state_shardings = parallel.specs_for(shapes, parallel.sharding_rules(config["sharding"]), mesh)
    if config["offload_optimizer_state"]:
        state_shardings = state_shardings._replace(
            opt_state=parallel.on_host(shapes.opt_state, state_shardings.opt_state, mesh)
        )
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings,
    )
    batch_sharding = parallel.batch_sharding(mesh)
    model = build_model(config, mesh, state_shardings.params)
    encode_image, encode_text = encoders(config, model, state_shardings.params)
    value_and_grad = parallel.contrastive_value_and_grad(
        encode_image,
        encode_text,
        losses.from_config(config["loss"]),
        num_micro_batches=config["num_micro_batches"],
        mesh=mesh,
    )
    train_step = step_lib.make_train_step(
        value_and_grad,
        tx,
        ema_decay=config["ema_decay"],
        logit_scale_max=config_check.logit_scale_limit(config),
        learning_rate=optim.learning_rate_schedule(config["optim"], config["total_steps"]),
        state_shardings=state_shardings,
        batch_shardings=batch_sharding,
    )
    return Experiment(
        config=config,
        mesh=mesh,
        model=model,
        create_state=create_state,
        abstract_state=abstract_state,
        state_shardings=state_shardings,
        batch_sharding=batch_sharding,
        train_step=train_step,
        encode_image=encode_image,
        encode_text=encode_text,
    )


def build_model(
    config: Config, mesh: jax.sharding.Mesh | None = None, shardings: Any = None
) -> models.CLIP:
    """The encoders of a resolved configuration.

    Args:
      config: the configuration.
      mesh: devices that their arguments are sharded over; None for one device.
      shardings: of the parameters, None for one device.
    """
    dtype = config["precision"]["compute_dtype"]
    attention = config["attention_implementation"]
    if attention == "fused" and mesh is not None:
        attention = models.fused_attention.sharded(mesh, parallel.BATCH_AXES, "tensor")
    gather_block = None
    if shardings is not None:
        gather_block = {
            tower: functools.partial(
                parallel.gather, shardings=shardings[tower]["blocks_0"], dtype=dtype
            )
            for tower in ("image", "text")
        }
    fields = {key: value for key, value in config["model"].items() if key != "preset"}
    # The devices that it will run on, not those of this process: it may be an ahead-of-time build.
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return models.build(
        presets.CLIPConfig.from_dict(fields),
        dtype=dtype,
        remat=config["remat"],
        scan_layers=config["scan_layers"],
        attention_implementation=attention,
        gather_block=gather_block,
        flat_products=platform == "cpu",
    )


def encoders(
    config: Config, model: models.CLIP, shardings: Any = None
) -> tuple[Callable[[Any, jax.Array], jax.Array], Callable[[Any, jax.Array], jax.Array]]:
    """``encode_image`` on uint8 images and ``encode_text``, frozen parameters cut off.

    With ``shardings`` (of the parameters) those outside of the blocks are gathered first; blocks
    gather their own.
    """
    data = config["data"]
    frozen = config["optim"].get("freeze", ())

    def ready(params: Any, tower: str) -> Any:
        params = state_lib.stop_frozen_gradients(params, frozen)
        if shardings is None:
            return params
        outside = {k: v for k, v in params[tower].items() if not k.startswith("blocks_")}
        whole = parallel.gather(
            outside,
            {key: shardings[tower][key] for key in outside},
            config["precision"]["compute_dtype"],
        )
        return {**params, tower: {**params[tower], **whole}}

    def encode_image(params: Any, images: jax.Array) -> jax.Array:
        pixels = step_lib.normalize_images(images, data["image_mean"], data["image_std"])
        return model.encode_image(ready(params, "image"), pixels)

    def encode_text(params: Any, tokens: jax.Array) -> jax.Array:
        return model.encode_text(ready(params, "text"), tokens)

    return encode_image, encode_text


def check_batch(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Refuse a global batch that does not divide over devices, processes and micro-batches."""
    size = config["global_batch_size"]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    pieces = shards * config["num_micro_batches"]
    if size % pieces:
        raise ValueError(
            f"global_batch_size={size} does not divide over data x fsdp={shards} devices x "
            f"num_micro_batches={config['num_micro_batches']}; use a multiple of {pieces}, for "
            f"instance {max(pieces, size // pieces * pieces)}, or change config.mesh"
        )


def parameter_count(params: Any) -> int:
    """Number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
