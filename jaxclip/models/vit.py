"""The image tower: a Vision Transformer (Dosovitskiy et al., 2021) as CLIP and SigLIP have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.models import layers
from jaxclip.models.presets import ImageConfig


class VisionTransformer(nn.Module):
    """Normalised images float[B, H, W, 3] -> float[B, embed_dim], not yet of unit length."""

    config: ImageConfig
    embed_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention_implementation: layers.Implementation = None
    gather_block: Callable[[Any], Any] | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        c = self.config
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(
                f"images of shape {images.shape}; the image tower takes [B, {c.image_size}, "
                f"{c.image_size}, 3]"
            )
        x = self.stem(images.astype(self.dtype))
        x = x.reshape(x.shape[0], c.grid * c.grid, -1)  # [B, N, C]
        if x.shape[-1] != c.width:
            x = layers.dense(c.width, self.dtype, "stem_out")(x)
        x = self.add_positions(x)
        if c.pre_norm:
            x = layers.norm(c.norm_eps, self.dtype, "norm_pre")(x)
        block = layers.Block(
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            activation=c.activation,
            norm_eps=c.norm_eps,
            dtype=self.dtype,
            implementation=self.attention_implementation,
            parent=None,
        )
        x = layers.transformer(
            self, block, c.depth, x, None, remat=self.remat, scan_layers=self.scan_layers
        )
        x = self.pool(x)
        if c.projection == "linear":
            init = nn.initializers.normal(c.width**-0.5)
            x = layers.dense(self.embed_dim, self.dtype, "projection", use_bias=False, init=init)(x)
        return x

    def stem(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, grid, grid, width or stem_widths[-1]]."""
        c = self.config
        if c.stem == "patch":
            return layers.dense(c.width, self.dtype, "patch_embedding", use_bias=c.patch_bias)(
                patches(images, c.patch_size)
            )
        x = images
        factor = c.patch_size // 2 ** (len(c.stem_widths) - 1)
        for stage, width in enumerate(c.stem_widths):
            # Non-overlapping reduction: a plain matrix product, several times cheaper on a CPU
            # than an overlapping strided convolution; the residual convolutions mix neighbours.
            x = layers.dense(width, self.dtype, f"stem_{stage}_reduce")(patches(x, factor))
            x = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_norm")(x)
            for index in range(c.stem_depth):
                y = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"stem_{stage}_conv_{index}")(x)
                y = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_conv_norm_{index}")(y)
                x = x + layers.ACTIVATIONS[c.activation](y)
            factor = 2
        return x

    def add_positions(self, x: jax.Array) -> jax.Array:
        """Add positions, and put the class token first where there is one."""
        c = self.config
        has_token = c.pool == "cls"
        if has_token:
            token = self.param("class_token", nn.initializers.normal(c.width**-0.5), (c.width,))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([token, x], axis=1)
        if c.positions == "sincos":
            table = jnp.asarray(sincos_positions(c.grid, c.width), self.dtype)
            return x.at[:, 1:].add(table) if has_token else x + table
        shape = (c.grid * c.grid + has_token, c.width)
        table = self.param("positions", nn.initializers.normal(c.width**-0.5), shape)
        return x + table.astype(self.dtype)

    def pool(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, C]."""
        c = self.config
        if c.pool == "cls":
            return layers.norm(c.norm_eps, self.dtype, "norm_post")(x[:, 0])
        x = layers.norm(c.norm_eps, self.dtype, "norm_post")(x)
        if c.pool == "mean":
            return x.mean(axis=1)
        return layers.AttentionPool(
            c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="attention_pool"
        )(x)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Cut into squares: [B, H, W, C] -> [B, H / size, W / size, size * size * C]."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // size, width // size, size * size * channels)


def sincos_positions(grid: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-d sine-cosine positions (Chen et al., 2021, MoCo v3; Beyer et al., 2022).

    Args:
      grid: patches along a side.
      width: channels, a multiple of 4.
      temperature: ratio of the longest wavelength to the shortest, 2π patches.

    Returns:
      float32[grid * grid, width].

    Raises:
      ValueError: the width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"positions='sincos' needs a width divisible by 4, got {width}")
    y, x = np.mgrid[:grid, :grid].reshape(2, -1)
    omega = 1.0 / temperature ** (np.arange(width // 4) / max(width // 4 - 1, 1))
    angles = [np.outer(x, omega), np.outer(y, omega)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(
        np.float32
    )
