"""Cures that the step has a part in: QK-Clip, muP's rates, TrAct over micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxclip import config_check
from jaxclip.config import Config
from jaxclip.models import mup, presets, tract, vit
from jaxclip.optim.config import read_qk_clip
from jaxclip.optim.groups import Group, scale_updates
from jaxclip.train import grad_cache, towers
from jaxclip.train.state import parameter_path

TOWERS = ("image", "text")


def with_mup(
    tx: optax.GradientTransformation, config: Config, sizes: presets.CLIPConfig
) -> optax.GradientTransformation:
    """The optimizer with muP's learning rates, where a tower asks for muP at another width.

    Args:
      tx: the optimizer.
      config: resolved configuration.
      sizes: its towers.

    Raises:
      ValueError: an optimizer that muP has no such rates for.
    """
    factors = mup.rate_factors(sizes)
    if not factors:
        return tx
    name = config["optim"]["name"]
    if name not in mup.OPTIMIZERS:
        raise ValueError(
            f"optim.name={name!r} with model.*.mup_base_width: its learning rates are those of "
            f"Adam and its like ({', '.join(mup.OPTIMIZERS)}); use one of these, or set "
            "mup_base_width to 0"
        )
    groups = [Group(pattern, learning_rate_factor=factor) for pattern, factor in factors]
    return optax.chain(tx, scale_updates(groups, None))


def whitening(
    config: Config, own: towers.ModelTowers, mesh: jax.sharding.Mesh
) -> tuple[towers.ModelTowers, Callable[[Any, Any], Any] | None]:
    """TrAct over micro-batches: what is trained, and what is done to its gradient.

    (xᵀx/m + λI)⁻¹ xᵀg wants the patches x of the whole batch. xᵀg is the plain gradient, a sum over
    micro-batches, and xᵀx one of the images alone.

    Args:
      config: resolved configuration.
      own: the towers.
      mesh: the mesh the batch is sharded over.

    Returns:
      The towers as they are, and None, where nothing is to be done.
    """
    sizes, count = own.sizes.image, config["num_micro_batches"]
    if sizes.first_layer != "tract" or count == 1:
        return own, None
    image = dataclasses.replace(sizes, first_layer="plain")
    model = dataclasses.replace(
        own.model,
        config=dataclasses.replace(own.sizes, image=image),
        image=dataclasses.replace(own.model.image, config=image),
    )

    def whiten(gradients: Any, batch: Any) -> Any:
        images = batch["image"]
        split, _ = grad_cache.splitter(images.shape[0], count, mesh)

        def add(total: jax.Array, piece: jax.Array) -> tuple[jax.Array, None]:
            x = own.image_input(piece).astype(own.model.image.dtype)
            x = vit.patches(x, sizes.patch_size)
            return total + tract.moment(x.reshape(-1, x.shape[-1])), None

        layer = gradients["image"]["patch_embedding"]
        kernel = layer["kernel"]
        zeros = jnp.zeros((kernel.shape[0], kernel.shape[0]), jnp.float32)
        total, _ = jax.lax.scan(add, zeros, split(images))
        patches = images.shape[0] * sizes.grid**2
        kernel = tract.solve(total, patches, kernel, sizes.tract_lambda).astype(kernel.dtype)
        layer = {**layer, "kernel": kernel}
        return {**gradients, "image": {**gradients["image"], "patch_embedding": layer}}

    return dataclasses.replace(own, model=model), whiten


def qk_clip_threshold(
    config: Config, sizes: presets.CLIPConfig, params: Any, batch_keys: Collection[str]
) -> float | None:
    """The bound of ``optim.qk_clip``, or None without it.

    Args:
      config: resolved configuration.
      sizes: its towers.
      params: their parameters or shapes.
      batch_keys: keys of the batch.

    Raises:
      ValueError: attention that it does not work with, frozen queries or keys, or a batch without
        images or texts.
    """
    threshold = read_qk_clip(config["optim"].get("qk_clip"))
    if threshold is None:
        return None
    for tower in TOWERS:
        own = getattr(sizes, tower)
        if tower not in batch_keys:
            raise ValueError(
                f"optim.qk_clip: the batch has no {tower!r} whose attention could be looked at; "
                "leave qk_clip out"
            )
        if own.qk_norm:
            raise ValueError(
                f"optim.qk_clip has no effect with model.{tower}.qk_norm, which undoes any scale "
                "of queries and keys; use one of them"
            )
        if own.attention_soft_cap:
            raise ValueError(
                f"optim.qk_clip and model.{tower}.attention_soft_cap both bound the attention "
                "scores; use one of them"
            )
    for path, _ in jax.tree_util.tree_leaves_with_path({t: params[t] for t in TOWERS}):
        name = parameter_path(path)
        moves = "/attention/query/" in name or "/attention/key/" in name
        if moves and "/blocks_" in name and config_check.is_frozen(config, name):
            raise ValueError(
                f"optim.qk_clip scales {name}, which optim freezes; leave one of them out"
            )
    return threshold
