"""Parts of convolutional towers and stems; images and kernels have their channels last."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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


class Depthwise(nn.Module):
    """A depthwise convolution, padded so that stride 1 keeps the grid.

    Attributes:
      features: channels that come out, a multiple of those that come in.
      size: side of the kernel, an odd number.
      stride: of the convolution.
      use_bias: whether a bias is added.
      dtype: compute dtype.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C] -> [B, h / stride, w / stride, features]."""
        shape = (self.size, self.size, 1, self.features)
        kernel = self.param("kernel", nn.initializers.truncated_normal(0.02), shape)
        y = depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype)
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Each channel convolved by itself, zeros around.

    The gradient of the kernel is our own, a sum for each tap. JAX's is a convolution with
    ``batch_group_count``, which XLA's partitioner gets wrong in JAX 0.10: where the batch is
    sharded over one mesh axis and whole over another (``tensor``), the gradient comes out that
    axis' size times too large.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, M C], k odd.
      stride: of the convolution.

    Returns:
      [B, H / stride, W / stride, M C].
    """
    return _depthwise(x, kernel, stride)


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(kernel.shape[0] // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size, channels = kernel.shape[0], kernel.shape[-1]
    # Of the input, JAX's own gradient is right.
    (to_x,) = jax.linear_transpose(lambda x: _depthwise(x, kernel, stride), x)(gradient)
    margin = size // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    padded = jnp.repeat(padded, channels // x.shape[-1], axis=-1)
    height, width = (stride * (side - 1) + 1 for side in gradient.shape[1:3])
    wide = gradient.astype(jnp.float32)

    def row(index: jax.Array) -> jax.Array:
        lines = jax.lax.dynamic_slice_in_dim(padded, index, height, axis=1)[:, ::stride]
        taps = (lines[:, :, at : at + width : stride] for at in range(size))
        return jnp.stack([(tap.astype(jnp.float32) * wide).sum((0, 1, 2)) for tap in taps])

    to_kernel = jax.lax.map(row, jnp.arange(size))  # [k, k, M C]
    return to_x, to_kernel[:, :, None].astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


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
