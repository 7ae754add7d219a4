"""What a token reduction is, and those that leave patches out between blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models.features import Features, Tokens
from jaxclip.models.vit import VisionTransformer

Params = Any


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A way to run an image tower on fewer patches; its fields are its options."""

    def features(self, tower: VisionTransformer, params: Params, images: jax.Array) -> Features:
        """The tower's outputs; ``tokens`` are those that are left.

        Args:
          tower: a vision transformer.
          params: of the tower.
          images: float[B, H, W, 3], normalised.

        Raises:
          ValueError: another kind of tower, or options that do not fit its depth.
        """
        raise NotImplementedError

    def encode(self, tower: Any, params: Params, images: Any) -> jax.Array:
        """float32[B, D], not of unit length.

        Raises:
          ValueError: as :meth:`features`.
        """
        name = type(self).__name__
        if not isinstance(tower, VisionTransformer):
            raise ValueError(f"{name} is for vision transformers, not {type(tower).__name__}")
        if not hasattr(images, "ndim"):
            raise ValueError(f"{name} is for pictures, not for patch sequences (NaFlex)")
        return self.features(tower, params, images).raw


@dataclasses.dataclass(frozen=True)
class Stage:
    """Patches are left out in front of a block.

    Attributes:
      layer: the block.
      select: ``(scores float32[B, N], x [B, N, C], places int32[B, N]) -> int32[B, K]``: which of
        the patches stay, as indices among them.
    """

    layer: int
    select: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Prune(Reduction):
    """Leaves patches out in front of some blocks, by the attention that they get.

    The score of a patch is the softmax over patches of q·k / sqrt(d), the mean over heads, in the
    block in front of which patches are left out, without rotary positions. The query is the class
    token, or, in a tower without one, each patch in turn, of which the mean is taken.
    """

    def stages(self, depth: int, grid: tuple[int, int]) -> list[Stage]:
        """What is left out where; ``grid`` are rows and columns of patches."""
        raise NotImplementedError

    def features(self, tower: VisionTransformer, params: Params, images: jax.Array) -> Features:
        grid = tower.grid(images.shape)
        tokens = tower.embed(params, images)
        count = grid[0] * grid[1]
        places = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (len(images), count))
        done = 0
        for stage in self.stages(tower.config.depth, grid):
            tokens, _ = tower.blocks(params, tokens, done, stage.layer)
            scores = attention_to_patches(tower, params, tokens, stage.layer)
            chosen = stage.select(scores, tokens.x[:, tower.prefix :], places)
            chosen = jnp.sort(chosen, axis=1)
            tokens = take(tokens, chosen, tower.prefix)
            places = jnp.take_along_axis(places, chosen, axis=1)
            done = stage.layer
        tokens, taps = tower.blocks(params, tokens, done)
        return tower.head(params, tokens, taps)


def check_layers(name: str, layers: tuple[int, ...], depth: int) -> None:
    """Refuse blocks that are not there or do not ascend.

    Raises:
      ValueError: says so.
    """
    if list(layers) != sorted(set(layers)) or not all(0 <= layer < depth for layer in layers):
        raise ValueError(f"{name}.layers={layers}: must ascend within 0 to {depth - 1}")


def attention_to_patches(
    tower: VisionTransformer, params: Params, tokens: Tokens, block: int
) -> jax.Array:
    """float32[B, N], how much attention each patch would get in a block; see :class:`Prune`."""
    query, key, _ = tower.qkv(params, tokens.x, block)
    key = key[:, :, tower.prefix :]
    query = query[:, :, :1] if tower.config.has_class_token else query[:, :, tower.prefix :]
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * key.shape[-1] ** -0.5, axis=-1).mean((1, 2))


def take(tokens: Tokens, chosen: jax.Array, prefix: int) -> Tokens:
    """Some of the patches, with what belongs to them; the ``prefix`` tokens before them stay.

    Args:
      tokens: of B rows.
      chosen: int32[B, K], places among the patches.
      prefix: number of tokens before the patches.
    """
    x = tokens.x
    patches = jnp.take_along_axis(x[:, prefix:], chosen[..., None], axis=1)
    turns = tokens.turns
    if turns is not None:
        turns = jnp.broadcast_to(turns, (len(x), *turns.shape[-2:]))
        turns = jnp.take_along_axis(turns, chosen[..., None], axis=1)
    x = jnp.concatenate([x[:, :prefix], patches], axis=1)
    return dataclasses.replace(tokens, x=x, turns=turns)
