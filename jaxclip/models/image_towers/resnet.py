"""CLIP's modified ResNets (Radford et al., 2021, section 2.4): RN50 to RN50x64.

Three convolutions in the stem, an average pool before every stride (Zhang, 2019), and attention
pooling: the mean of all places looks at all places. Batch norm runs on frozen statistics
(:class:`jaxclip.models.batch_norm.FrozenBatchNorm`), so that these towers are for published weights
rather than for training from scratch.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.convolutions import average_pool, full
from jaxclip.models.positions import resize_positions
from jaxclip.models.staged import Params, Part, StagedConfig, StagedTower

_EXPANSION = 4


@dataclasses.dataclass(frozen=True)
class ResNetConfig(StagedConfig):
    """Sizes of a modified ResNet.

    Attributes:
      kind: ``"resnet"``.
      image_size: side of the square input, pixels; a multiple of 32.
      depths: bottleneck blocks of each stage.
      stem_width: channels of the stem and of the first stage's bottlenecks; each stage doubles
        them.
      num_heads: heads of the attention pool.
    """

    kind: str = "resnet"
    image_size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    stem_width: int = 64
    num_heads: int = 32

    pool: ClassVar[str] = "attention"
    positions: ClassVar[str] = "learned"
    has_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_stages()
        if self.stem_width < 2 or self.stem_width % 2:
            raise ValueError(f"model.image.stem_width={self.stem_width}; use an even number")
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ValueError(
                f"model.image.num_heads={self.num_heads} does not divide the width {self.width}"
            )

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.stem_width * 2 ** (self.depth - 1) * _EXPANSION

    @property
    def summary(self) -> str:
        """The tower in one line."""
        return (
            f"{self.image_size} px, modified ResNet of {'-'.join(map(str, self.depths))} blocks, "
            f"stem {self.stem_width}, width {self.width}, attention pool of {self.num_heads} heads"
        )


@dataclasses.dataclass(frozen=True)
class ResNet(StagedTower):
    """Normalised images float[B, H, W, 3] -> features; :meth:`encode` gives float[B, embed_dim]."""

    config: ResNetConfig

    config_class: ClassVar[type] = ResNetConfig

    @property
    def stem(self) -> nn.Module:
        return Stem(self.config.stem_width, self.dtype, parent=None)

    def block(self, stage: int, index: int) -> nn.Module:
        width = self.config.stem_width * 2**stage
        first = index == 0
        return Bottleneck(
            width,
            stride=2 if first and stage else 1,
            shortcut=first and self.channels(stage - 1) != width * _EXPANSION,
            dtype=self.dtype,
            flat=self.flat_products,
            parent=None,
        )

    def channels(self, stage: int) -> int:
        width = self.config.stem_width
        return width if stage < 0 else width * 2**stage * _EXPANSION

    def init_tables(self, rng: jax.Array) -> dict[str, Any]:
        c = self.config
        shape = (c.grid**2 + 1, c.width)
        return {"positions": nn.initializers.normal(c.width**-0.5)(rng, shape)}

    def parts(self) -> dict[str, Part]:
        x = jnp.zeros((1, 2, self.config.width), self.dtype)
        return {"attention": (self.attention, (x,)), "projection": (self.projection, (x,))}

    @property
    def attention(self) -> PoolingAttention:
        """The pool without positions and projection, unbound."""
        return PoolingAttention(self.config.num_heads, self.dtype, parent=None)

    @property
    def projection(self) -> nn.Dense:
        init = nn.initializers.normal(self.config.width**-0.5)
        return layers.dense(self.embed_dim, self.dtype, None, init=init)

    def pool(self, params: Params, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, C], before the pool's output layer, which is the projection."""
        c = self.config
        grid = (x.shape[1], x.shape[2])
        table = resize_positions(params["positions"], (c.grid, c.grid), grid, prefix=1)
        with jax.named_scope(type(self).__name__):
            x = x.reshape(x.shape[0], -1, c.width)
            x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
            x = x + table.astype(x.dtype)
            out: Any = self.attention.apply({"params": params["attention"]}, x)
        return out

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        with jax.named_scope(type(self).__name__), jax.named_scope("projection"):
            out: Any = self.projection.apply({"params": params["projection"]}, x.astype(self.dtype))
        return out

    def pool_tokens(self, params: Params, x: jax.Array) -> jax.Array:
        """The value path of the pool (MaskCLIP, Zhou et al., 2022): [..., C] -> [..., C]."""
        linear = layers.dense(self.config.width, self.dtype, None)
        out: Any = linear.apply({"params": params["attention"]["value"]}, x.astype(self.dtype))
        return out


class Stem(nn.Module):
    """Three 3x3 convolutions, of which the first has stride 2, and an average pool."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 4, W / 4, width]."""
        for index, width in enumerate((self.width // 2, self.width // 2, self.width)):
            x = full(width, 3, self.dtype, f"conv_{index}", stride=1 if index else 2)(x)
            x = nn.relu(FrozenBatchNorm(dtype=self.dtype, name=f"norm_{index}")(x))
        return average_pool(x, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; strides are average pools.

    Attributes:
      width: channels of the 3x3 convolution; 4 times as many come out.
      stride: of the block.
      shortcut: whether the shortcut has a convolution of its own.
      dtype: compute dtype.
      flat: see :func:`jaxclip.models.linear.dense`.
    """

    width: int
    stride: int
    shortcut: bool
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h / stride, w / stride, 4 width]."""

        def pointwise(features: int, name: str) -> nn.Dense:
            return layers.dense(features, self.dtype, name, use_bias=False, flat=self.flat)

        def norm(name: str) -> FrozenBatchNorm:
            return FrozenBatchNorm(dtype=self.dtype, name=name)

        y = nn.relu(norm("reduce_norm")(pointwise(self.width, "reduce")(x)))
        y = full(self.width, 3, self.dtype, "conv")(y)
        y = average_pool(nn.relu(norm("conv_norm")(y)), self.stride)
        y = norm("expand_norm")(pointwise(self.width * _EXPANSION, "expand")(y))
        if self.shortcut:
            x = pointwise(self.width * _EXPANSION, "shortcut")(average_pool(x, self.stride))
            x = norm("shortcut_norm")(x)
        return nn.relu(x + y)


class PoolingAttention(nn.Module):
    """The first token looks at all; what comes out is not projected yet."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, C] -> [B, C]."""
        width = x.shape[-1]
        query, key, value = (
            layers.dense(width, self.dtype, name)(y).reshape(
                x.shape[0], -1, self.num_heads, width // self.num_heads
            )
            for name, y in (("query", x[:, :1]), ("key", x), ("value", x))
        )
        return jax.nn.dot_product_attention(query, key, value).reshape(x.shape[0], width)
