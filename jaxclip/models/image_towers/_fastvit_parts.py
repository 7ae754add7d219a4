"""Convolutions of FastViT: parallel branches with batch norms, or the one that they add up to."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxclip.models import layers
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.convolutions import Depthwise, full


class MobileOne(nn.Module):
    """A convolution, a 1x1 convolution and the identity, each with a batch norm, added up.

    MobileOne (Vasu et al., 2023, arXiv:2206.04040). The 1x1 branch is there for larger kernels, the
    identity where neither the grid nor the channels change.

    Attributes:
      features: channels that come out.
      size: side of the kernel.
      stride: of the convolution.
      depthwise: whether channels are convolved each by itself.
      scale: whether there is a branch of a 1x1 convolution.
      conv: whether there is the convolution proper.
      activate: whether GELU follows.
      squeeze_ratio: hidden channels of squeeze-and-excitation over ``features``; 0 for none.
      folded: one convolution with bias in place of the branches.
      dtype: compute dtype.
      flat: see :func:`jaxclip.models.linear.dense`.
    """

    features: int
    size: int
    stride: int = 1
    depthwise: bool = False
    scale: bool = True
    conv: bool = True
    activate: bool = True
    squeeze_ratio: float = 0.0
    folded: bool = False
    dtype: Any = None
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h / stride, w / stride, features]."""
        y = self.convolution("folded", self.size, x, use_bias=True) if self.folded else self.sum(x)
        if self.squeeze_ratio:
            hidden = max(1, int(self.features * self.squeeze_ratio + 0.5))
            y = SqueezeExcite(hidden, self.dtype, name="squeeze")(y)
        return layers.ACTIVATIONS["gelu"](y) if self.activate else y

    def sum(self, x: jax.Array) -> jax.Array:
        """All branches."""
        branches = []
        if self.scale and self.size > 1:
            y = self.convolution("scale", 1, x)
            branches.append(FrozenBatchNorm(dtype=self.dtype, name="scale_norm")(y))
        if self.stride == 1 and x.shape[-1] == self.features:
            branches.append(FrozenBatchNorm(dtype=self.dtype, name="identity")(x))
        if self.conv:
            y = self.convolution("conv", self.size, x)
            branches.append(FrozenBatchNorm(dtype=self.dtype, name="conv_norm")(y))
        return sum(branches[1:], start=branches[0])

    def convolution(self, name: str, size: int, x: jax.Array, use_bias: bool = False) -> jax.Array:
        if self.depthwise:
            return Depthwise(self.features, size, self.stride, use_bias, self.dtype, name=name)(x)
        if size == 1:
            x = x[:, :: self.stride, :: self.stride]
            return layers.dense(self.features, self.dtype, name, use_bias=use_bias, flat=self.flat)(
                x
            )
        conv = full(self.features, size, self.dtype, name, stride=self.stride, use_bias=use_bias)
        return conv(x)


class RepMixer(nn.Module):
    """x + layer_scale * (branches(x) - norm(x)): a token mixer without attention."""

    width: int
    folded: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        if self.folded:
            return Depthwise(self.width, 3, dtype=self.dtype, name="folded")(x)
        y = MobileOne(
            self.width, size=3, depthwise=True, activate=False, dtype=self.dtype, name="branches"
        )(x)
        y = y - FrozenBatchNorm(dtype=self.dtype, name="norm")(x)
        scale = self.param("layer_scale", nn.initializers.constant(1e-5), (self.width,))
        return x + y * scale.astype(self.dtype)


class LargeKernel(nn.Module):
    """Depthwise 7x7 and 3x3 convolutions of stride 2, added up; channels are multiplied."""

    features: int
    squeeze: bool
    folded: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h / 2, w / 2, features]."""
        if self.folded:
            y = self.convolution("folded", 7, x, use_bias=True)
        else:
            y = FrozenBatchNorm(dtype=self.dtype, name="large_norm")(
                self.convolution("large", 7, x)
            )
            small = self.convolution("small", 3, x)
            y = y + FrozenBatchNorm(dtype=self.dtype, name="small_norm")(small)
        if self.squeeze:
            # A quarter of the channels, brought to a multiple of 8.
            hidden = max(8, int(self.features / 4 + 4) // 8 * 8)
            y = SqueezeExcite(hidden, self.dtype, name="squeeze")(y)
        return layers.ACTIVATIONS["gelu"](y)

    def convolution(self, name: str, size: int, x: jax.Array, use_bias: bool = False) -> jax.Array:
        return Depthwise(self.features, size, 2, use_bias, self.dtype, name=name)(x)


class SqueezeExcite(nn.Module):
    """Channels weighted by a function of their means (Hu et al., 2018)."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        y = x.mean(axis=(1, 2), keepdims=True)
        y = nn.relu(layers.dense(self.hidden, self.dtype, "reduce")(y))
        return x * nn.sigmoid(layers.dense(x.shape[-1], self.dtype, "expand")(y))
