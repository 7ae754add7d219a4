"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545) as OpenCLIP trains it: base, large, xxlarge."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.convolutions import Depthwise, patches
from jaxclip.models.staged import Params, Part, StagedConfig, StagedTower

_MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(StagedConfig):
    """Sizes of a ConvNeXt.

    Attributes:
      kind: ``"convnext"``.
      image_size: side of the square input, pixels; a multiple of 32.
      depths: blocks of each stage.
      widths: channels of each stage.
      norm_eps: epsilon of the layer norms.
      projection: ``"linear"`` (no bias) to the joint space, or ``"mlp"``: twice as wide as the
        joint space, GELU, no bias at the end (OpenCLIP's ``large_d``).
    """

    kind: str = "convnext"
    image_size: int = 256
    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    norm_eps: float = 1e-6
    projection: str = "linear"  # type: ignore[misc]  # an option here

    def __post_init__(self) -> None:
        self.check_stages()
        if len(self.widths) != len(self.depths) or min(self.widths) < 1:
            raise ValueError(
                f"model.image.widths={list(self.widths)}; use a positive width for each of the "
                f"{self.depth} stages of model.image.depths"
            )
        if self.projection not in ("linear", "mlp"):
            raise ValueError(f"model.image.projection={self.projection!r}; use 'linear', 'mlp'")

    @property
    def width(self) -> int:
        """Channels of the last stage."""
        return self.widths[-1]

    @property
    def summary(self) -> str:
        """The tower in one line."""
        return (
            f"{self.image_size} px, ConvNeXt of {'-'.join(map(str, self.depths))} blocks, widths "
            f"{'-'.join(map(str, self.widths))}, {self.projection} projection"
        )


@dataclasses.dataclass(frozen=True)
class ConvNeXt(StagedTower):
    """Normalised images float[B, H, W, 3] -> features; :meth:`encode` gives float[B, embed_dim]."""

    config: ConvNeXtConfig

    config_class: ClassVar[type] = ConvNeXtConfig
    has_residual_dtype: ClassVar[bool] = True

    @property
    def stem(self) -> nn.Module:
        c = self.config
        return Stem(c.widths[0], c.norm_eps, self.outer_dtype, self.flat_products, parent=None)

    def block(self, stage: int, index: int) -> nn.Module:
        c = self.config
        return Block(
            c.widths[stage],
            downsample=index == 0 and stage > 0,
            norm_eps=c.norm_eps,
            dtype=self.dtype,
            outer_dtype=self.outer_dtype,
            flat=self.flat_products,
            parent=None,
        )

    def channels(self, stage: int) -> int:
        return self.config.widths[max(stage, 0)]

    def parts(self) -> dict[str, Part]:
        x = jnp.zeros((1, self.config.width), self.outer_dtype)
        return {"norm_post": (self.norm_post, (x,)), "projection": (self.projection, (x,))}

    @property
    def norm_post(self) -> nn.LayerNorm:
        return layers.norm(self.config.norm_eps, self.outer_dtype, None)

    @property
    def projection(self) -> nn.Module:
        return Projection(
            self.embed_dim, self.config.projection == "mlp", self.outer_dtype, parent=None
        )

    def pool(self, params: Params, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, C]: the mean, normed."""
        return self.pool_tokens(params, x.mean(axis=(1, 2)))

    def project(self, params: Params, x: jax.Array) -> jax.Array:
        with jax.named_scope(type(self).__name__), jax.named_scope("projection"):
            out: Any = self.projection.apply(
                {"params": params["projection"]}, x.astype(self.outer_dtype)
            )
        return out

    def pool_tokens(self, params: Params, x: jax.Array) -> jax.Array:
        """The norm behind the mean, of each place by itself: [..., C] -> [..., C]."""
        with jax.named_scope(type(self).__name__), jax.named_scope("norm_post"):
            out: Any = self.norm_post.apply({"params": params["norm_post"]}, x)
        return out


class Stem(nn.Module):
    """Patches of 4x4 pixels, mapped linearly and normed."""

    width: int
    norm_eps: float
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, H / 4, W / 4, width]."""
        x = layers.dense(self.width, self.dtype, "embedding", flat=self.flat)(patches(x, 4))
        return layers.norm(self.norm_eps, self.dtype, "norm")(x)


class Block(nn.Module):
    """x + layer_scale * MLP(norm(7x7 depthwise convolution(x))).

    The first block of a stage halves the grid before: a norm, then squares of 2x2 places mapped
    linearly.
    """

    width: int
    downsample: bool
    norm_eps: float
    dtype: Any
    outer_dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, width], or half as many places along each side."""
        if self.downsample:
            x = layers.norm(self.norm_eps, self.outer_dtype, "downsample_norm")(x)
            reduce = layers.dense(self.width, self.outer_dtype, "downsample", flat=self.flat)
            x = reduce(patches(x, 2))
        y = Depthwise(self.width, 7, dtype=self.dtype, name="conv")(x)
        y = layers.norm(self.norm_eps, self.dtype, "norm")(y)
        result = None if self.outer_dtype == self.dtype else self.outer_dtype
        options: dict[str, Any] = {"flat": self.flat, "result_dtype": result, "name": "mlp"}
        y = layers.MLP(_MLP_RATIO * self.width, "gelu", self.dtype, **options)(y)
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (self.width,))
        return x + y * scale.astype(self.dtype)


class Projection(nn.Module):
    """One linear layer, or an MLP; no bias at the end."""

    features: int
    mlp: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        if self.mlp:
            hidden = layers.dense(2 * self.features, self.dtype, "up")(x)
            x = layers.ACTIVATIONS["gelu"](hidden)
        init = nn.initializers.normal(x.shape[-1] ** -0.5)
        return layers.dense(self.features, self.dtype, "out", use_bias=False, init=init)(x)
