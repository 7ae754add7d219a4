"""The image tower: a Vision Transformer (Dosovitskiy et al., 2021) as CLIP and SigLIP have it."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import dropout as dropout_lib
from jaxclip.models import features as features_lib
from jaxclip.models import heads, layers, mup, rotary, tract
from jaxclip.models.batch_norm import FrozenBatchNorm
from jaxclip.models.convolutions import patches
from jaxclip.models.features import InsertLike, Tokens
from jaxclip.models.patch_sequence import PatchSequence, sequence_positions
from jaxclip.models.positions import Grid, resize_positions, sincos_positions
from jaxclip.models.presets import ImageConfig
from jaxclip.models.tower import Tower
from jaxclip.models.tower_parts import Params

__all__ = ["Embed", "VisionTransformer", "patches", "resize_positions", "sincos_positions"]

# Number of the place where patches are dropped, for keys; blocks have their index.
_PATCH_DROPOUT = 1_000_000
# Alpha-CLIP's normalisation of the mask.
ALPHA_MEAN, ALPHA_STD = 0.5, 0.26


@dataclasses.dataclass(frozen=True)
class VisionTransformer(Tower):
    """Normalised images float[B, H, W, 3] -> features; :meth:`encode` gives float[B, embed_dim].

    With ``config.max_patches`` a :class:`PatchSequence` serves as well.
    """

    config: ImageConfig

    @property
    def prefix(self) -> int:
        return self.config.has_class_token + self.config.num_registers

    @property
    def has_projection(self) -> bool:
        return self.config.projection != "none"

    @property
    def query_pool(self) -> heads.AttentionPooler:
        """The pooler of ``pool="queries"``."""
        c = self.config
        return heads.AttentionPooler(
            c.num_queries,
            self.embed_dim,
            c.pool_heads or c.num_heads,
            c.norm_eps,
            self.outer_dtype,
            parent=None,
        )

    @property
    def embedding(self) -> Embed:
        """The first stage as an unbound module."""
        return Embed(self.config, self.outer_dtype, self.flat_products, parent=None)

    def init_embed(self, rng: jax.Array) -> dict[str, Any]:
        size = self.config.image_size
        drawn: Any = self.embedding.init(rng, jnp.zeros((1, size, size, 3), jnp.float32))
        return dict(drawn["params"])

    def head_parts(self, x: jax.Array) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
        if self.config.pool != "queries":
            return super().head_parts(x)
        pooled = jnp.zeros((*x.shape[:2], self.embed_dim), x.dtype)
        return {"query_pool": (self.query_pool, (x,)), **super().head_parts(pooled)}

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
        channels = (3, 4) if self.config.alpha else (3,)
        if len(shape) != 4 or shape[3] not in channels or shape[1] % size or shape[2] % size:
            raise ValueError(
                f"images of shape {shape}; the image tower takes [B, H, W, "
                f"{' or '.join(map(str, channels))}] with H and W multiples of "
                f"model.image.patch_size={size}"
            )
        return shape[1] // size, shape[2] // size

    def embed(
        self,
        params: Params,
        inputs: Any,
        *,
        keep: jax.Array | None = None,
        insert: InsertLike = None,
        keys: jax.Array | None = None,
    ) -> Tokens:
        """Patches with positions, behind class and register tokens: the first stage.

        Args:
          params: of the tower.
          inputs: float[B, H, W, 3], normalised; any size that patches fill. With ``alpha`` there
            may be a fourth channel, 0 to 1. Or patch sequences.
          keep: int32[B, K], patches to run; None for all.
          insert: tokens put in at layer 0.
          keys: PRNG keys [B] for patch dropout (not where ``keep`` is given), None for none.
        """
        rate = self.config.patch_dropout
        if isinstance(inputs, PatchSequence):
            self.check_sequence(inputs)
            size, count, valid = None, inputs.patches.shape[1], inputs.valid
        else:
            size = rows, columns = self.grid(inputs.shape)
            count, valid = rows * columns, None
        if keep is None and keys is not None and rate:
            drawn = dropout_lib.fold_in(keys, _PATCH_DROPOUT)
            keep = dropout_lib.random_patches(drawn, count, rate)
        if valid is not None and keep is not None:
            valid = jnp.take_along_axis(valid, keep, axis=1)
        asked = features_lib.as_insert(insert, self.config.depth)
        first = instead = None
        if asked is not None and 0 in asked.layers:
            if asked.at is not None:
                instead = asked.layers[0], asked.at
            elif asked.before_norm:
                first = asked.layers[0]
        with jax.named_scope(type(self).__name__):
            x: Any = self.embedding.apply({"params": params}, inputs, keep, first, instead)
            seen = None
            if valid is not None:  # registers are always seen
                seen = jnp.pad(valid, ((0, 0), (self.prefix, 0)), constant_values=True)
            inserted = 0 if first is None else first.shape[-2]
            turns = self.rotary(size, keep)
            tokens = Tokens(x, valid, inserted=inserted, turns=turns, keys=seen)
            if asked is not None and 0 in asked.layers and first is None and instead is None:
                tokens = features_lib.put_in(tokens, asked, 0)
        return tokens

    def rotary(self, grid: Grid | None, keep: jax.Array | None = None) -> jax.Array | None:
        """Rotary angles of the patches of a grid, or of those of them that run; None for none.

        Raises:
          ValueError: patch sequences (no grid) with rotary positions.
        """
        c = self.config
        if c.rope == "none":
            return None
        if grid is None:
            raise ValueError(f"rope={c.rope!r} is not for patch sequences; use 'none'")
        turns = jnp.asarray(
            rotary.angles(
                grid,
                c.head_size,
                c.rope,
                reference=c.rope_grid,
                offset=c.rope_offset,
            )
        )
        return turns if keep is None else turns[keep]

    def mask(self, tokens: Tokens) -> jax.Array | None:
        return (
            None if tokens.keys is None else features_lib.valid_keys(tokens.keys, tokens.inserted)
        )

    def check_sequence(self, sequence: PatchSequence) -> None:
        """Refuse patch sequences that the tower can't take.

        Raises:
          ValueError: it is for square pictures, or shapes that don't fit.
        """
        c = self.config
        if not c.max_patches:
            raise ValueError(
                "patch sequences are for NaFlex models (model.image.max_patches above 0); this "
                f"image tower takes [B, {c.image_size}, {c.image_size}, 3]"
            )
        patches, valid, grid = (jnp.shape(each) for each in sequence)
        if (
            len(patches) != 3
            or patches[2] != 3 * c.patch_size**2
            or valid != patches[:2]
            or grid != (patches[0], 2)
        ):
            raise ValueError(
                f"patch sequences of shapes {patches}, {valid}, {grid}; use [B, N, "
                f"{3 * c.patch_size**2}], [B, N] and [B, 2]"
            )

    def pool(self, params: Params, tokens: Tokens) -> jax.Array:
        """[B, M+P+N, C] -> [B, C]: the class token; or of the patches, and ``pool_prefix``."""
        c = self.config
        x = tokens.x[:, tokens.inserted :] if tokens.inserted else tokens.x
        with jax.named_scope(type(self).__name__):
            if c.pool == "cls":
                return self.normed(params, x[:, 0])
            if c.pool == "queries":
                return self.queries(params, tokens)[:, 0]
            x = x if c.pool_prefix else x[:, self.prefix :]
            if c.norm_after_pool:
                return self.normed(params, x.mean(axis=1))
            x = self.normed(params, x)
            if c.pool == "mean":
                where = None if tokens.valid is None else tokens.valid[:, :, None]
                return x.mean(axis=1, where=where)
            mask = None if tokens.valid is None else features_lib.valid_keys(tokens.valid, 0)
            out: Any = self.attention_pool.apply({"params": params["attention_pool"]}, x, mask)
            return out

    def queries(self, params: Params, tokens: Tokens) -> jax.Array:
        """What the queries of ``pool="queries"`` see, normed: [B, Q, D]."""
        x = tokens.x[:, tokens.inserted :]
        seen: Any = self.query_pool.apply({"params": params["query_pool"]}, x)
        return self.normed(params, seen)

    def normed_tokens(self, params: Params, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        if self.config.pool != "queries":
            return super().normed_tokens(params, tokens)
        seen = self.queries(params, tokens)
        return seen[:, 1:], seen[:, :1]

    def normed_inserted(self, params: Params, tokens: Tokens) -> jax.Array:
        if self.config.pool != "queries":
            return super().normed_inserted(params, tokens)
        return tokens.x[:, : tokens.inserted]  # the norm is that of the queries' width


class Embed(nn.Module):
    """Patches with positions, behind class and register tokens."""

    config: ImageConfig
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array | PatchSequence,
        keep: jax.Array | None = None,
        first: jax.Array | None = None,
        instead: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """[B, H, W, 3] -> [B, M+P+N, C].

        Args:
          images: normalised.
          keep: int32[B, K], patches to run.
          first: [M, C] or [B, M, C], tokens put in before the norm.
          instead: ([M, C] or [B, M, C], int32[M] or [B, M]): mask tokens and the patches of which
            they take the place, before positions are added.
        """
        c = self.config
        grid: Grid | jax.Array
        if isinstance(images, PatchSequence):
            x, grid = self.project(images.patches.astype(self.dtype)), images.grid
        else:
            x = self.stem(images[..., :3].astype(self.dtype))
            grid = (x.shape[1], x.shape[2])
            x = x.reshape(x.shape[0], grid[0] * grid[1], -1)  # [B, N, C]
        if x.shape[-1] != c.width:
            init = mup.input_init(c)
            x = layers.dense(c.width, self.dtype, "stem_out", init=init, flat=self.flat)(x)
        if c.alpha and not isinstance(images, PatchSequence):
            x = x + self.alpha(images).reshape(x.shape)
        if instead is not None:
            x = features_lib.overwrite(x, features_lib.rows(instead[0], x), instead[1])
        x = self.add_positions(x, grid)
        has_token = c.has_class_token
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
            x = layers.norm(c.norm_eps, self.dtype, "norm_pre", c.norm)(x)
        return x

    def alpha(self, images: jax.Array) -> jax.Array:
        """What the alpha channel adds to the patches (Sun et al., 2024, Alpha-CLIP,
        arXiv:2312.03818): nothing, to begin with."""
        c = self.config
        alpha = images[..., 3:] if images.shape[-1] == 4 else jnp.ones_like(images[..., :1])
        alpha = ((alpha - ALPHA_MEAN) / ALPHA_STD).astype(self.dtype)
        start = nn.initializers.zeros
        layer = layers.dense(
            c.width, self.dtype, "alpha_embedding", use_bias=False, init=start, flat=self.flat
        )
        out: jax.Array = layer(patches(alpha, c.patch_size))
        return out

    def stem(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, rows, columns, width or stem_widths[-1]]."""
        c = self.config
        if c.stem == "patch":
            return self.project(patches(images, c.patch_size))
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
                    x = layers.activation(c.activation)(x)
                continue
            x = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_norm")(x)
            for index in range(c.stem_depth):
                y = nn.Conv(width, (3, 3), dtype=self.dtype, name=f"stem_{stage}_conv_{index}")(x)
                y = layers.norm(c.norm_eps, self.dtype, f"stem_{stage}_conv_norm_{index}")(y)
                x = x + layers.activation(c.activation)(y)
        return x

    def project(self, pieces: jax.Array) -> jax.Array:
        """Flat patches [..., p * p * 3] -> [..., width]."""
        c = self.config
        product = tract.dot_general(c.tract_lambda) if c.first_layer == "tract" else None
        return layers.dense(
            c.width,
            self.dtype,
            "patch_embedding",
            use_bias=c.patch_bias,
            init=mup.input_init(c),
            flat=self.flat,
            dot_general=product,
        )(pieces)

    def add_positions(self, x: jax.Array, grid: Grid | jax.Array) -> jax.Array:
        """Add positions, and put the class token first where there is one.

        Args:
          x: [B, N, C].
          grid: rows and columns of all pictures, or int32[B, 2] of each.
        """
        c = self.config
        has_token = c.has_class_token
        if has_token:
            drawn = nn.initializers.normal(mup.base_width(c) ** -0.5)
            token = self.param("class_token", drawn, (c.width,))
            token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([token, x], axis=1)
        if c.positions == "sincos" and isinstance(grid, tuple):
            fixed = jnp.asarray(sincos_positions(grid, c.width), self.dtype)
            return x.at[:, 1:].add(fixed) if has_token else x + fixed
        if c.positions == "none":
            return x
        prefix = int(has_token and c.class_position)
        shape = (c.grid * c.grid + prefix, c.width)
        drawn = nn.initializers.normal(mup.base_width(c) ** -0.5)
        table = self.param("positions", drawn, shape)
        if c.max_patches:
            sizes = jnp.asarray(grid, jnp.int32).reshape(-1, 2)
            return x + sequence_positions(table, c.grid, sizes, x.shape[1]).astype(self.dtype)
        assert isinstance(grid, tuple)
        table = resize_positions(table, (c.grid, c.grid), grid, prefix=prefix).astype(self.dtype)
        return x.at[:, 1:].add(table) if has_token and not prefix else x + table
