"""Sparse upcycling: MLPs of a trained model become experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models.presets import CLIPConfig

Params = dict[str, Any]


def upcycle(
    params: Params,
    sizes: CLIPConfig,
    num_experts: int,
    key: jax.Array,
    *,
    blocks: int = 0,
    per_token: int = 2,
    capacity: float = 0.0,
    towers: Sequence[str] = ("image", "text"),
    others: Sequence[Params] = (),
) -> tuple[Params, CLIPConfig]:
    """Copy the MLP of the last blocks into experts (Komatsuzaki et al., 2023, arXiv:2212.05055).

    With copies alone and no capacity the model computes what it did, for the weights of a token's
    experts sum to 1.

    Args:
      params: the tree of :meth:`jaxclip.models.CLIP.init`.
      sizes: its architecture, with plain MLPs.
      num_experts: E.
      key: a PRNG key for the routers, normal with deviation 0.02.
      blocks: how many blocks of each tower, from the end; 0 for all.
      per_token: experts of a token.
      capacity: see :class:`jaxclip.models.experts.Experts`.
      towers: which.
      others: models of the same architecture whose MLPs become experts 1, 2, … (CLIP-MoE's, tuned
        on clusters); further experts are copies of ``params``'.

    Returns:
      ``(params, sizes)``.

    Raises:
      ValueError: options that can't be, towers that have experts or can't have any, or more models
        than experts.
    """
    if len(others) >= num_experts:
        raise ValueError(f"{1 + len(others)} models make no {num_experts} experts")
    result = dict(params)
    for tower, rng in zip(towers, jax.random.split(key, len(towers)), strict=True):
        config = getattr(sizes, tower)
        if "num_experts" not in {field.name for field in dataclasses.fields(config)}:
            raise ValueError(f"model.{tower}.kind={config.kind!r} has no blocks that take experts")
        if config.num_experts:
            raise ValueError(f"model.{tower} has {config.num_experts} experts already")
        config = dataclasses.replace(
            config,
            num_experts=num_experts,
            expert_blocks=blocks,
            experts_per_token=per_token,
            expert_capacity=capacity,
        )
        sizes = dataclasses.replace(sizes, **{tower: config})
        chosen = range(config.depth - (blocks or config.depth), config.depth)
        new = dict(params[tower])
        for index, own in zip(chosen, jax.random.split(rng, len(chosen)), strict=True):
            name = f"blocks_{index}"
            models = [params, *others, *[params] * (num_experts - 1 - len(others))]
            mlps = [model[tower][name]["mlp"] for model in models]
            router = 0.02 * jax.random.normal(own, (config.width, num_experts))
            mlp = {
                "router": {"kernel": router},
                "experts": jax.tree.map(lambda *leaves: jnp.stack(leaves), *mlps),
            }
            new[name] = {**new[name], "mlp": mlp}
        result[tower] = new
    return result, sizes
