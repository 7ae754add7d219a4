"""Parts of convolutional towers and stems; images and kernels have their channels last."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cut into squares: [B, H, W, C] -> [B, H / size, W / size, size * size * C].

    A linear layer on them is a convolution of that size and stride.
    """
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size * size * channels)


def average_pool(x: jax.Array, size: int) -> jax.Array:
    """Means of squares: [B, H, W, C] -> [B, H / size, W / size, C]."""
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // size, size, width // size, size, channels).mean((2, 4))


def depthwise(
    width: int,
    size: int,
    dtype: Any,
    name: str | None,
    *,
    groups: int = 0,
    stride: int = 1,
    use_bias: bool = True,
) -> nn.Conv:
    """A depthwise convolution, padded so that stride 1 keeps the grid.

    Args:
      width: channels that come out.
      size: side of the kernel, an odd number.
      dtype: compute dtype.
      name: of its parameters.
      groups: channels that come in; 0 for as many as come out.
      stride: of the convolution.
      use_bias: whether a bias is added.
    """
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups or width,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.truncated_normal(0.02),
        name=name,
    )


def full(
    width: int, size: int, dtype: Any, name: str | None, *, stride: int = 1, use_bias: bool = False
) -> nn.Conv:
    """A convolution over all channels, padded so that stride 1 keeps the grid."""
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )
