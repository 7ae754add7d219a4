"""ToMe: similar patches are merged in each block."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.attend import Attend
from jaxclip.models.features import Features, Tokens
from jaxclip.models.reductions._base import Params, Reduction
from jaxclip.models.vit import VisionTransformer


class Merge(NamedTuple):
    """Which patches go together.

    Attributes:
      unmerged: int32[B, A - r], patches of the first set that stay, as indices among all.
      sources: int32[B, r], those that are merged, as indices among all.
      targets: int32[B, r], with which of the second set, as indices among that.
      second: int32[N - A], the second set.
    """

    unmerged: jax.Array
    sources: jax.Array
    targets: jax.Array
    second: jax.Array


@dataclasses.dataclass(frozen=True)
class ToMe(Reduction):
    """Bolya et al. 2022 (arXiv:2210.09461), off the shelf.

    In each block, between attention and MLP, the r most similar pairs are merged, by the cosine of
    their keys (the mean over heads, without rotary positions). Patches are two sets in turn, and
    each of the first may go to its most similar one of the second. Merged patches are the mean of
    what they are made of, attention counts them as so many (log size is added to their scores), and
    so do the pools. Class and register tokens are never merged.

    Attributes:
      r: pairs that are merged in a block, at most half of the patches.
      inflect: r goes linearly from r (1 - inflect) in the first block to r (1 + inflect) in the
        last: -1 merges most in the first blocks.
      proportional: whether attention counts sizes (off for towers that were trained with merging).
    """

    r: int = 8
    inflect: float = 0.0
    proportional: bool = True

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ValueError(f"tome.r={self.r!r} must not be negative")
        if not -1 <= self.inflect <= 1:
            raise ValueError(f"tome.inflect={self.inflect!r} must be in [-1, 1]")

    def schedule(self, depth: int) -> list[int]:
        """Pairs that are to be merged in each block."""
        low, high = self.r * (1 - self.inflect), self.r * (1 + self.inflect)
        step = (high - low) / max(1, depth - 1)
        return [int(low + step * block) for block in range(depth)]

    def features(self, tower: VisionTransformer, params: Params, images: jax.Array) -> Features:
        if tower.variant.num_experts or tower.config.pool == "queries":
            raise ValueError("tome is not for towers with experts or several queries (CoCa)")
        tokens = tower.embed(params, images)
        prefix = tower.prefix
        count = tokens.x.shape[1] - prefix
        sizes = jnp.ones((len(images), count), jnp.float32)
        for block, r in enumerate(self.schedule(tower.config.depth)):
            r = min(r, sizes.shape[1] // 2)
            bias = (
                self._bias(sizes, prefix) if self.proportional and sizes.shape[1] < count else None
            )
            keys = tower.qkv(params, tokens.x, block)[1][:, :, prefix:].mean(1) if r else None
            asked = tower.requests(
                attend={block: Attend(mlp=False)},
                attention_bias=None if bias is None else {block: bias},
            )
            tokens, _ = tower.blocks(params, tokens, block, block + 1, requests=asked)
            if keys is not None:
                merge = match(jax.lax.stop_gradient(keys), r, min(prefix, 1))
                tokens, sizes = merged(tokens, sizes, merge, prefix)
            tokens = dataclasses.replace(tokens, x=mlp_half(tower, params, tokens.x, block))
        return _head(tower, params, tokens, sizes)

    @staticmethod
    def _bias(sizes: jax.Array, prefix: int) -> jax.Array:
        """float32[B, 1, L, L]: log size of each key."""
        logs = jnp.pad(jnp.log(sizes), [(0, 0), (prefix, 0)])
        length = logs.shape[1]
        return jnp.broadcast_to(logs[:, None, None, :], (len(logs), 1, length, length))


def match(keys: jax.Array, r: int, first: int = 0) -> Merge:
    """The r most similar pairs of two sets of tokens that alternate.

    Args:
      keys: float[B, N, d].
      r: pairs, at most as many as the first set has.
      first: index of the first token of the first set, 0 or 1 (behind a class token, which counts
        as the first one of that set).
    """
    count = keys.shape[1]
    ones, others = jnp.arange(first, count, 2), jnp.arange(1 - first, count, 2)
    unit = keys.astype(jnp.float32)
    unit = unit / jnp.maximum(jnp.linalg.norm(unit, axis=-1, keepdims=True), 1e-12)
    scores = jnp.einsum("bnd,bmd->bnm", unit[:, ones], unit[:, others], precision="highest")
    nearest, target = scores.max(axis=-1), scores.argmax(axis=-1)
    order = jnp.argsort(-nearest, axis=1)
    merged_ones, rest = order[:, :r], jnp.sort(order[:, r:], axis=1)
    targets = jnp.take_along_axis(target, merged_ones, axis=1)
    return Merge(ones[rest], ones[merged_ones], targets, others)


def merged(
    tokens: Tokens, sizes: jax.Array, merge: Merge, prefix: int = 0
) -> tuple[Tokens, jax.Array]:
    """Tokens and sizes after a merge: the unmerged of the first set, then the second set.

    Args:
      tokens: [B, P + N, C].
      sizes: float32[B, N], how many patches each is.
      merge: what goes together.
      prefix: P, tokens before the patches, which stay.

    Returns:
      [B, P + N - r, C] and float32[B, N - r]. Rotary angles of a merged patch are its target's.
    """
    x, before = tokens.x[:, prefix:], tokens.x[:, :prefix]
    weights = sizes[..., None].astype(x.dtype)

    def joined(values: jax.Array) -> jax.Array:
        """Sums over what goes together."""
        rows = jnp.arange(len(values))[:, None]
        moved = jnp.take_along_axis(values, merge.sources[..., None], axis=1)
        there = values[:, merge.second].at[rows, merge.targets].add(moved)
        stay = jnp.take_along_axis(values, merge.unmerged[..., None], axis=1)
        return jnp.concatenate([stay, there], axis=1)

    total = joined(weights)
    x = joined(x * weights) / total
    turns = tokens.turns
    if turns is not None:
        turns = jnp.broadcast_to(turns, (len(x), *turns.shape[-2:]))
        stay = jnp.take_along_axis(turns, merge.unmerged[..., None], axis=1)
        turns = jnp.concatenate([stay, turns[:, merge.second]], axis=1)
    x = jnp.concatenate([before, x], axis=1)
    return dataclasses.replace(tokens, x=x, turns=turns), total[..., 0].astype(jnp.float32)


def mlp_half(tower: VisionTransformer, params: Params, x: jax.Array, block: int) -> jax.Array:
    """The second half of a block: x + mlp(norm(x)), or as the tower's variant has it."""
    variant, p = tower.variant, params[f"blocks_{block}"]
    norm = layers.norm(tower.config.norm_eps, tower.dtype, None, variant.norm)
    mlp = layers.MLP(
        tower.config.mlp_dim,
        tower.config.activation,
        tower.dtype,
        tower.flat_products,
        variant,
        tower.config.norm_eps,
        tower.block.result_dtype,
        parent=None,
    )
    post = variant.norm_place == "post"
    y: Any = x if post else norm.apply({"params": p["mlp_norm"]}, x)
    y = mlp.apply({"params": p["mlp"]}, y)
    y = norm.apply({"params": p["mlp_norm"]}, y) if post else y
    return x + (y * p["mlp_scale"].astype(tower.dtype) if "mlp_scale" in p else y)


def _head(tower: VisionTransformer, params: Params, tokens: Tokens, sizes: jax.Array) -> Features:
    """The tower's head, whose pool counts a merged patch as so many."""
    features = tower.head(params, tokens)
    c = tower.config
    if c.pool == "cls":
        return features
    if c.pool == "map":
        pooled: Any = tower.attention_pool.apply(
            {"params": params["attention_pool"]}, features.tokens, None, jnp.log(sizes)
        )
    else:
        before = tower.prefix if c.pool_prefix else 0
        weights = jnp.pad(sizes, [(0, 0), (before, 0)], constant_values=1.0)
        weights = (weights / weights.sum(axis=1, keepdims=True))[..., None]
        x = tokens.x[:, tower.prefix - before :].astype(jnp.float32)
        if c.norm_after_pool:
            pooled = tower.normed(params, (x * weights).sum(axis=1).astype(tokens.x.dtype))
        else:
            x = tower.normed(params, tokens.x[:, tower.prefix - before :])
            pooled = (x * weights).sum(axis=1).astype(x.dtype)
    raw = tower.project(params, pooled).astype(jnp.float32)
    return features._replace(pooled=pooled, raw=raw, embedding=layers.unit(raw))
