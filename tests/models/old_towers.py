"""Both towers as they were before they came in stages, for comparison to the bit.

One compact module a tower, with Flax's own layers; no switches, patch stem and learned positions.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import vit
from jaxclip.models.layers import ACTIVATIONS

GLOROT = nn.initializers.xavier_uniform()


def dense(features, name, init=GLOROT, bias=True):
    return nn.Dense(features, use_bias=bias, kernel_init=init, dtype=jnp.float32, name=name)


class Attention(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, queries, keys, mask, causal):
        width = queries.shape[-1]
        shape = (-1, self.heads, width // self.heads)
        q, k, v = (
            dense(width, name)(x).reshape(x.shape[0], *shape)
            for name, x in (("query", queries), ("key", keys), ("value", keys))
        )
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)
        return dense(width, "out")(out.reshape(queries.shape))


class MLP(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x):
        y = ACTIVATIONS[self.config.activation](dense(self.config.mlp_dim, "up")(x))
        return dense(x.shape[-1], "down")(y)


class Pool(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        probe = self.param("probe", GLOROT, (1, 1, c.width))
        probe = jnp.broadcast_to(probe, (x.shape[0], 1, c.width))
        x = Attention(c.num_heads, name="attention")(probe, x, mask, False)
        y = nn.LayerNorm(epsilon=c.norm_eps, dtype=jnp.float32, name="norm")(x)
        return (x + MLP(c, name="mlp")(y))[:, 0]


class Tower(nn.Module):
    config: Any
    embed_dim: int

    @nn.compact
    def __call__(self, inputs):
        c = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=c.norm_eps, dtype=jnp.float32)
        x, mask, real, last = self.image(inputs) if inputs.ndim == 4 else self.text(inputs)
        if getattr(c, "pre_norm", False):
            x = norm(name="norm_pre")(x)
        for index in range(c.depth):
            x = self.block(x, mask, f"blocks_{index}")
        if c.pool == "cls":
            x = norm(name="norm_post")(x[:, 0])
        else:
            x = norm(name="norm_post")(x)
            if c.pool == "final":
                x = x[:, -1]
            elif c.pool == "last":
                x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
            elif c.pool == "mean":
                x = jnp.mean(x, axis=1, where=None if real is None else real[:, :, None])
            else:
                x = Pool(c, name="attention_pool")(x, None)
        if c.projection != "none":
            init = nn.initializers.normal(c.width**-0.5)
            x = dense(self.embed_dim, "projection", init, c.projection == "linear_bias")(x)
        square = jnp.sum(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

    def image(self, images):
        c = self.config
        x = dense(c.width, "patch_embedding", bias=c.patch_bias)(vit.patches(images, c.patch_size))
        x = x.reshape(x.shape[0], c.grid * c.grid, -1)
        init = nn.initializers.normal(c.width**-0.5)
        if c.pool == "cls":
            token = self.param("class_token", init, (c.width,))
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, c.width)), x], axis=1)
        return x + self.param("positions", init, x.shape[1:]), None, None, None

    def text(self, tokens):
        c = self.config
        normal = nn.initializers.normal
        embedding = nn.Embed(
            c.vocab_size, c.width, embedding_init=normal(0.02), name="token_embedding"
        )
        positions = self.param("positions", normal(0.01), (c.context_length, c.width))
        place = jnp.arange(tokens.shape[1])
        last = jnp.max(jnp.where(tokens != 0, place, 0), axis=1)
        real = place <= last[:, None] if c.mask_padding else None
        mask = None if c.causal or real is None else real[:, None, None, :]
        return embedding(tokens) + positions[: tokens.shape[1]], mask, real, last

    def block(self, x, mask, name):
        return Block(self.config, name=name)(x, mask)


class Block(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x, mask):
        c = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=c.norm_eps, dtype=jnp.float32)
        y = norm(name="attention_norm")(x)
        causal = getattr(c, "causal", False)
        x = x + Attention(c.num_heads, name="attention")(y, y, mask, causal)
        return x + MLP(c, name="mlp")(norm(name="mlp_norm")(x))
