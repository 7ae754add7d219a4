"""MobileCLIP's convolutional towers MCi0 to MCi4 (Vasu et al., 2024, arXiv:2311.17049).

FastViT (Vasu et al., 2023, arXiv:2303.14189) with wider downsampling: stages of convolutions, then
of attention. ``form="branches"`` has the parallel convolutions that were trained, each with a batch
norm on frozen statistics; ``form="folded"`` has the one convolution that they add up to
(:func:`jaxclip.weights.surgery.fold_branches`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.convolutions import Depthwise
from jaxclip.models.image_towers._fastvit_parts import LargeKernel, MobileOne, RepMixer
from jaxclip.models.staged import Params, Part, StagedConfig, StagedTower

_HEAD_WIDTH = 32


@dataclasses.dataclass(frozen=True)
class FastViTConfig(StagedConfig):
    """Sizes of an MCi tower.

    Attributes:
      kind: ``"fastvit"``.
      image_size: side of the square input, pixels; a multiple of 32 with four stages.
      depths: blocks of each stage.
      widths: channels of each stage.
      mlp_ratio: hidden width of the MLPs over the width.
      attention_stages: how many of the last stages attend, behind a convolution for positions.
      squeeze_stages: in how many of the last stages downsampling has squeeze-and-excitation.
      attention_norm: ``"batch"`` or ``"layer"``, before attention.
      stem_scale: whether the stem has branches of 1x1 convolutions.
      form: ``"branches"`` or ``"folded"``.
    """

    kind: str = "fastvit"
    image_size: int = 256
    depths: tuple[int, ...] = (2, 6, 10, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    mlp_ratio: int = 3
    attention_stages: int = 1
    squeeze_stages: int = 2
    attention_norm: str = "batch"
    stem_scale: bool = True
    form: str = "branches"

    has_statistics: ClassVar[bool] = True  # folded, too: those of the MLPs' convolutions stay

    def __post_init__(self) -> None:
        self.check_stages()
        if len(self.widths) != len(self.depths) or min(self.widths) < 1:
            raise ValueError(
                f"model.image.widths={list(self.widths)}; use a positive width for each of the "
                f"{self.depth} stages of model.image.depths"
            )
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            if after % before:
                raise ValueError(
                    f"model.image.widths={list(self.widths)}: {after} is no multiple of {before}, "
                    "whose channels a stage multiplies"
                )
        for key, known in (
            ("attention_norm", ("batch", "layer")),
            ("form", ("branches", "folded")),
        ):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"model.image.{key}={getattr(self, key)!r}; use {', '.join(map(repr, known))}"
                )
        for key in ("attention_stages", "squeeze_stages"):
            if not 0 <= getattr(self, key) <= self.depth:
                raise ValueError(f"model.image.{key}={getattr(self, key)}; use 0 to {self.depth}")
        attending = self.widths[self.depth - self.attention_stages :]
        if any(width % _HEAD_WIDTH for width in attending):
            raise ValueError(
                f"model.image.widths={list(self.widths)}: stages that attend have heads of "
                f"{_HEAD_WIDTH}, which does not divide {attending[0]}"
            )
        if self.mlp_ratio < 1:
            raise ValueError(f"model.image.mlp_ratio={self.mlp_ratio}; use at least 1")

    @property
    def width(self) -> int:
        """Channels of the tokens: twice those of the last stage."""
        return 2 * self.widths[-1]

    @property
    def summary(self) -> str:
        """The tower in one line."""
        return (
            f"{self.image_size} px, FastViT of {'-'.join(map(str, self.depths))} blocks, widths "
            f"{'-'.join(map(str, self.widths))}, the last {self.attention_stages} with attention, "
            f"{self.form}"
        )


@dataclasses.dataclass(frozen=True)
class FastViT(StagedTower):
    """Normalised images float[B, H, W, 3] -> features; :meth:`encode` gives float[B, embed_dim]."""

    config: FastViTConfig

    config_class: ClassVar[type] = FastViTConfig

    @property
    def folded(self) -> bool:
        """Whether branches are added up."""
        return self.config.form == "folded"

    @property
    def stem(self) -> nn.Module:
        c = self.config
        return Stem(
            c.widths[0], c.stem_scale, self.folded, self.dtype, self.flat_products, parent=None
        )

    def block(self, stage: int, index: int) -> nn.Module:
        c = self.config
        behind = c.depth - stage  # 1 for the last stage
        attends = behind <= c.attention_stages
        return Block(
            width=c.widths[stage],
            mlp_dim=c.widths[stage] * c.mlp_ratio,
            downsample=index == 0 and stage > 0,
            squeeze=behind <= c.squeeze_stages,
            position=index == 0 and attends,
            attention_norm=c.attention_norm if attends else "none",
            folded=self.folded,
            dtype=self.dtype,
            flat=self.flat_products,
            parent=None,
        )

    def channels(self, stage: int) -> int:
        return self.config.widths[max(stage, 0)]

    @property
    def final(self) -> MobileOne:
        """The convolution behind the stages, which doubles the channels; unbound."""
        return MobileOne(
            self.config.width,
            size=3,
            depthwise=True,
            squeeze_ratio=1 / 16,
            folded=self.folded,
            dtype=self.dtype,
            parent=None,
        )

    @property
    def projection(self) -> nn.Dense:
        init = nn.initializers.truncated_normal(0.02)
        return layers.dense(self.embed_dim, self.dtype, None, init=init)

    def parts(self) -> dict[str, Part]:
        x = jnp.zeros((1, 2, 2, self.config.widths[-1]), self.dtype)
        pooled = jnp.zeros((1, self.config.width), self.dtype)
        return {"final": (self.final, (x,)), "projection": (self.projection, (pooled,))}

    def finish(self, params: Params, x: jax.Array) -> jax.Array:
        out: Any = self.final.apply({"params": params["final"]}, x)
        return out

    def pool(self, params: Params, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, C], the mean."""
        del params
        return x.mean(axis=(1, 2))

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        with jax.named_scope(type(self).__name__), jax.named_scope("projection"):
            out: Any = self.projection.apply({"params": params["projection"]}, x.astype(self.dtype))
        return out

    def pool_tokens(self, params: Params, x: jax.Array) -> jax.Array:
        """The mean changes nothing of a single place."""
        del params
        return x


class Stem(nn.Module):
    """Three MobileOne blocks: 3x3 with stride 2, 3x3 depthwise with stride 2, 1x1."""

    width: int
    scale: bool
    folded: bool
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 4, W / 4, width]."""
        shapes = ((3, 2, False), (3, 2, True), (1, 1, False))
        for index, (size, stride, depthwise_) in enumerate(shapes):
            x = MobileOne(
                self.width,
                size=size,
                stride=stride,
                depthwise=depthwise_,
                scale=self.scale,
                folded=self.folded,
                dtype=self.dtype,
                flat=self.flat,
                name=f"layer_{index}",
            )(x)
        return x


class Block(nn.Module):
    """A token mixer, convolution or attention, then an MLP behind a 7x7 depthwise convolution.

    Attributes:
      width: channels that come out.
      mlp_dim: hidden width of the MLP.
      downsample: whether the grid is halved first.
      squeeze: whether that has squeeze-and-excitation.
      position: whether a depthwise convolution for positions comes before.
      attention_norm: ``"batch"`` or ``"layer"`` where it attends; ``"none"`` for a convolution.
      folded: see :class:`FastViTConfig`.
      dtype: compute dtype.
      flat: see :func:`jaxclip.models.linear.dense`.
    """

    width: int
    mlp_dim: int
    downsample: bool
    squeeze: bool
    position: bool
    attention_norm: str
    folded: bool
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, width], or half as many places along each side."""
        if self.downsample:
            x = LargeKernel(self.width, self.squeeze, self.folded, self.dtype, name="downsample")(x)
            x = MobileOne(
                self.width,
                size=1,
                folded=self.folded,
                dtype=self.dtype,
                flat=self.flat,
                name="downsample_point",
            )(x)
        if self.position:
            y = Depthwise(self.width, 7, dtype=self.dtype, name="position")(x)
            x = y if self.folded else x + y
        if self.attention_norm == "none":
            x = RepMixer(self.width, self.folded, self.dtype, name="mixer")(x)
        else:
            x = x + self.scaled("attention_scale", self.attend(x))
        y = Depthwise(self.width, 7, use_bias=False, dtype=self.dtype, name="mlp_conv")(x)
        y = FrozenBatchNorm(dtype=self.dtype, name="mlp_norm")(y)
        y = layers.MLP(self.mlp_dim, "gelu", self.dtype, self.flat, name="mlp")(y)
        return x + self.scaled("mlp_scale", y)

    def scaled(self, name: str, x: jax.Array) -> jax.Array:
        scale = self.param(name, nn.initializers.constant(1e-5), (self.width,))
        return x * scale.astype(self.dtype)

    def attend(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        if self.attention_norm == "batch":
            y = FrozenBatchNorm(dtype=self.dtype, name="attention_norm")(x)
        else:
            y = layers.norm(1e-5, self.dtype, "attention_norm")(x)
        y = y.reshape(x.shape[0], -1, self.width)
        num_heads = self.width // _HEAD_WIDTH
        y = SelfAttention(num_heads, self.dtype, self.flat, name="attention")(y)
        return y.reshape(x.shape)


class SelfAttention(nn.Module):
    """Multi-head attention whose queries, keys and values have no bias."""

    num_heads: int
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, L, C] -> [B, L, C]."""
        width = x.shape[-1]
        query, key, value = (
            layers.dense(width, self.dtype, name, use_bias=False, flat=self.flat)(x).reshape(
                *x.shape[:2], self.num_heads, width // self.num_heads
            )
            for name in ("query", "key", "value")
        )
        out = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        return layers.dense(width, self.dtype, "out", flat=self.flat)(out)
