"""The text tower: a Transformer, causal as in CLIP or bidirectional as in SigLIP.

A text ends at its last token that is not 0. A 0 before that is no padding: in CLIP's vocabulary it
is the exclamation mark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.presets import TextConfig


class TextTransformer(nn.Module):
    """Tokens int32[B, L] (padded with 0 at the end) -> float[B, embed_dim]."""

    config: TextConfig
    embed_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention_implementation: layers.Implementation = None
    gather_block: Callable[[Any], Any] | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        c = self.config
        length = tokens.shape[1]
        if length > c.context_length:
            raise ValueError(
                f"tokens of shape {tokens.shape}: longer than model.text.context_length="
                f"{c.context_length}"
            )
        last = last_token(tokens)
        real = jnp.arange(length) <= last[:, None]  # bool[B, L]
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
        x = self.pool(x, last, real)
        return layers.dense(
            self.embed_dim,
            self.dtype,
            "projection",
            use_bias=c.projection == "linear_bias",
            init=nn.initializers.normal(c.width**-0.5),
        )(x)

    def pool(self, x: jax.Array, last: jax.Array, real: jax.Array) -> jax.Array:
        """[B, L, C], int32[B], bool[B, L] -> [B, C]."""
        c = self.config
        if c.pool == "final":
            return x[:, -1]
        if c.pool == "last":
            return jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        if c.pool == "mean":
            return jnp.mean(x, axis=1, where=real[:, :, None] if c.mask_padding else None)
        mask = real[:, None, None, :] if c.mask_padding else None
        return layers.AttentionPool(
            c.num_heads, c.mlp_dim, c.activation, c.norm_eps, self.dtype, name="attention_pool"
        )(x, mask)


def last_token(tokens: jax.Array) -> jax.Array:
    """Place of the last token that is no padding, int32[B]; 0 in a text without any.

    Args:
      tokens: int32[B, L].
    """
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(tokens != 0, place, 0), axis=1)
