"""The text tower: a Transformer, causal as in CLIP or bidirectional as in SigLIP."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.presets import TextConfig


class TextTransformer(nn.Module):
    """Tokens int32[B, L] (0 = padding, at the end) -> float[B, embed_dim]."""

    config: TextConfig
    embed_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention_implementation: str | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        length = tokens.shape[1]
        if length > c.context_length:
            raise ValueError(
                f"tokens of shape {tokens.shape}: longer than model.text.context_length="
                f"{c.context_length}"
            )
        real = tokens != 0
        embedding = nn.Embed(
            c.vocab_size,
            c.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="token_embedding",
        )
        positions = self.param(
            "positions", nn.initializers.normal(0.01), (c.context_length, c.width)
        )
        x = embedding(tokens) + positions[:length].astype(self.dtype)
        mask = None
        if c.mask_padding and not c.causal:  # behind a causal mask no token sees the padding
            mask = real[:, None, None, :]
        block = layers.Block(
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            activation=c.activation,
            norm_eps=c.norm_eps,
            dtype=self.dtype,
            causal=c.causal,
            implementation=self.attention_implementation,
            parent=None,
        )
        x = layers.transformer(
            self, block, c.depth, x, mask, remat=self.remat, scan_layers=self.scan_layers
        )
        x = layers.norm(c.norm_eps, self.dtype, "norm_post")(x)
        x = self.pool(x, real)
        return layers.dense(
            self.embed_dim,
            self.dtype,
            "projection",
            use_bias=c.projection == "linear_bias",
            init=nn.initializers.normal(c.width**-0.5),
        )(x)

    def pool(self, x: jax.Array, real: jax.Array) -> jax.Array:
        """[B, L, C], bool[B, L] -> [B, C]."""
        c = self.config
        if c.pool == "final":
            return x[:, -1]
        if c.pool == "last":
            last = jnp.maximum(real.sum(axis=1) - 1, 0)
            return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        if c.pool == "mean":
            weight = real.astype(jnp.float32) if c.mask_padding else jnp.ones(real.shape)
            weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1.0)
            return jnp.einsum("bl,blc->bc", weight.astype(self.dtype), x)
        mask = real[:, None, None, :] if c.mask_padding else None
        return layers.AttentionPool(
            c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="attention_pool"
        )(x, mask)
