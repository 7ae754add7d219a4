"""The image tower: a Vision Transformer (Dosovitskiy et al., 2021) as CLIP and SigLIP have it."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import dropout as dropout_lib
from jaxclip.models import features as features_lib
from jaxclip.models import layers, tract
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.convolutions import patches
from jaxclip.models.features import InsertLike, Tokens
from jaxclip.models.positions import Grid, resize_positions, sincos_positions
from jaxclip.models.presets import ImageConfig
from jaxclip.models.tower import Params, Tower

__all__ = ["Embed", "VisionTransformer", "patches", "resize_positions", "sincos_positions"]

# Number of the place where patches are dropped, for keys; blocks have their index.
_PATCH_DROPOUT = 1_000_000


@dataclasses.dataclass(frozen=True)
class VisionTransformer(Tower):
    """Normalised images float[B, H, W, 3] -> features; :meth:`encode` gives float[B, embed_dim]."""

    config: ImageConfig

    @property
    def prefix(self) -> int:
        return (self.config.pool == "cls") + self.config.num_registers

    @property
    def has_projection(self) -> bool:
        return self.config.projection != "none"

    @property
    def embedding(self) -> Embed:
        """The first stage as an unbound module."""
        return Embed(self.config, self.dtype, self.flat_products, parent=None)

    def init_embed(self, rng: jax.Array) -> dict[str, Any]:
        size = self.config.image_size
        drawn: Any = self.embedding.init(rng, jnp.zeros((1, size, size, 3), jnp.float32))
        return dict(drawn["params"])

    def random_rates(self) -> dict[str, float]:
        c = self.config
        rates = {"dropout": c.dropout, "patch_dropout": c.patch_dropout}
        return {f"model.image.{name}": rate for name, rate in rates.items() if rate}

    def grid(self, shape: tuple[int, ...]) -> Grid:
        """Rows and columns of patches of images of this shape.

        Raises:
          ValueError: it is no [B, H, W, 3] with sides that patches fill.
        """
        size = self.config.patch_size
        if len(shape) != 4 or shape[3] != 3 or shape[1] % size or shape[2] % size:
            raise ValueError(
                f"images of shape {shape}; the image tower takes [B, H, W, 3] with H and W "
                f"multiples of model.image.patch_size={size}"
            )
        return shape[1] // size, shape[2] // size

    def embed(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        keep: jax.Array | None = None,
        insert: InsertLike = None,
        keys: jax.Array | None = None,
    ) -> Tokens:
        """Patches with positions, behind class and register tokens: the first stage.

        Args:
          params: of the tower.
          inputs: float[B, H, W, 3], normalised; any size that patches fill.
          keep: int32[B, K], patches to run; None for all.
          insert: tokens put in at layer 0.
          keys: PRNG keys [B] for patch dropout (not where ``keep`` is given), None for none.
        """
        rows, columns = self.grid(inputs.shape)
        rate = self.config.patch_dropout
        if keep is None and keys is not None and rate:
            drawn = dropout_lib.fold_in(keys, _PATCH_DROPOUT)
            keep = dropout_lib.random_patches(drawn, rows * columns, rate)
        asked = features_lib.as_insert(insert, self.config.depth)
        first = None
        if asked is not None:
            if asked.at is not None:
                raise ValueError("insert: at= takes places in texts; images get more tokens")
            if asked.before_norm and 0 in asked.layers:
                first = asked.layers[0]
        with jax.named_scope(type(self).__name__):
            x: Any = self.embedding.apply({"params": params}, inputs, keep, first)
            tokens = Tokens(x, inserted=0 if first is None else first.shape[-2])
            if asked is not None and 0 in asked.layers and first is None:
                tokens = features_lib.put_in(tokens, asked, 0)
        return tokens

    def mask(self, tokens: Tokens) -> jax.Array | None:
        del tokens
        return None

    def pool(self, params: Params, tokens: Tokens) -> jax.Array:
        """[B, M+P+N, C] -> [B, C]: the class token, or of the patches alone."""
        c = self.config
        x = tokens.x[:, tokens.inserted :] if tokens.inserted else tokens.x
        with jax.named_scope(type(self).__name__):
            if c.pool == "cls":
                return self.normed(params, x[:, 0])
            x = self.normed(params, x[:, self.prefix :])
            if c.pool == "mean":
                return x.mean(axis=1)
            out: Any = self.attention_pool.apply({"params": params["attention_pool"]}, x)
            return out


class Embed(nn.Module):
    """Patches with positions, behind class and register tokens."""

    config: ImageConfig
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        keep: jax.Array | None = None,
        first: jax.Array | None = None,
    ) -> jax.Array:
        """[B, H, W, 3] -> [B, M+P+N, C].

        Args:
          images: normalised.
          keep: int32[B, K], patches to run.
          first: [M, C] or [B, M, C], tokens put in before the norm.
        """
        c = self.config
        x = self.stem(images.astype(self.dtype))
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(x.shape[0], grid[0] * grid[1], -1)  # [B, N, C]
        if x.shape[-1] != c.width:
            x = layers.dense(c.width, self.dtype, "stem_out", flat=self.flat)(x)
        x = self.add_positions(x, grid)
        has_token = c.pool == "cls"
        if keep is not None:
            kept = jnp.take_along_axis(x[:, has_token:], keep[:, :, None], axis=1)
            x = jnp.concatenate([x[:, :1], kept], axis=1) if has_token else kept
        if c.num_registers:
            shape = (c.num_registers, c.width)
            registers = self.param("registers", nn.initializers.normal(0.02), shape)
            registers = features_lib.rows(registers, x)
            x = jnp.concatenate([x[:, :has_token], registers, x[:, has_token:]], axis=1)
        if first is not None:
            x = jnp.concatenate([features_lib.rows(first, x), x], axis=1)
        if c.pre_norm:
            x = layers.norm(c.norm_eps, self.dtype, "norm_pre")(x)
        return x

    def stem(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, rows, columns, width or stem_widths[-1]]."""
        c = self.config
        if c.stem == "patch":
            product = tract.dot_general(c.tract_lambda) if c.first_layer == "tract" else None
            return layers.dense(
                c.width,
                self.dtype,
                "patch_embedding",
                use_bias=c.patch_bias,
                flat=self.flat,
                dot_general=product,
            )(patches(images, c.patch_size))
        x = images
        factor = c.patch_size // 2 ** (len(c.stem_widths) - 1)
        for stage, width in enumerate(c.stem_widths):
            # Non-overlapping reduction: a plain matrix product, several times cheaper on a CPU
            # than an overlapping strided convolution; the residual convolutions mix neighbours.
            bias = c.stem == "conv" or stage == len(c.stem_widths) - 1
            reduce = layers.dense(
                width, self.dtype, f"stem_{stage}_reduce", use_bias=bias, flat=self.flat
            )
            x = reduce(patches(x, factor))
            factor = 2
            if c.stem == "conv_bn":
                if stage < len(c.stem_widths) - 1:
                    x = FrozenBatchNorm(dtype=self.dtype, name=f"stem_{stage}_norm")(x)
                    x = layers.ACTIVATIONS[c.activation](x)
                continue
            x = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_norm")(x)
            for index in range(c.stem_depth):
                y = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"stem_{stage}_conv_{index}")(x)
                y = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_conv_norm_{index}")(y)
                x = x + layers.ACTIVATIONS[c.activation](y)
        return x

    def add_positions(self, x: jax.Array, grid: Grid) -> jax.Array:
        """Add positions, and put the class token first where there is one."""
        c = self.config
        has_token = c.pool == "cls"
        if has_token:
            token = self.param("class_token", nn.initializers.normal(c.width**-0.5), (c.width,))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([token, x], axis=1)
        if c.positions == "sincos":
            fixed = jnp.asarray(sincos_positions(grid, c.width), self.dtype)
            return x.at[:, 1:].add(fixed) if has_token else x + fixed
        prefix = int(has_token and c.class_position)
        shape = (c.grid * c.grid + prefix, c.width)
        table = self.param("positions", nn.initializers.normal(c.width**-0.5), shape)
        table = resize_positions(table, (c.grid, c.grid), grid, prefix=prefix).astype(self.dtype)
        return x.at[:, 1:].add(table) if has_token and not prefix else x + table
