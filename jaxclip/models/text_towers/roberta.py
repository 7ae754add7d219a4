"""RoBERTa and XLM-RoBERTa as text towers (Liu et al., 2019, arXiv:1907.11692; Conneau et al., 2020,
arXiv:1911.02116), as open_clip puts them behind ``hf_model_name``."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import attend, layers
from jaxclip.models import features as features_lib
from jaxclip.models.presets import TextConfig
from jaxclip.models.text import TextTransformer
from jaxclip.models.tower_parts import Params


class PostNormBlock(layers.Block):
    """norm(x + attention(x)), then norm(x + mlp(x)) (Vaswani et al., 2017)."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        how: attend.How = attend.UNCHANGED,
        keys: jax.Array | None = None,
        turns: jax.Array | None = None,
    ) -> tuple[jax.Array, attend.Taken]:
        """As :meth:`jaxclip.models.layers.Block.__call__`."""
        attention = layers.Attention(
            self.num_heads,
            self.dtype,
            self.implementation,
            self.flat,
            result_dtype=self.result_dtype,
            name="attention",
        )
        y, taken = attention(x, x, mask=mask, causal=self.causal, how=how, turns=turns)
        y = self.drop(y, keys, 0)
        y = x + y if how.attend.residual else y
        x = layers.norm(self.norm_eps, x.dtype, "attention_norm")(y)
        if how.attend.mlp:
            mlp = layers.MLP(
                self.mlp_dim,
                self.activation,
                self.dtype,
                self.flat,
                result_dtype=self.result_dtype,
                name="mlp",
            )
            sums: list[jax.Array] | None = [] if how.sums else None
            y = mlp(x, sums)
            taken = taken._replace(sums=sums[0] if sums else None)
            x = layers.norm(self.norm_eps, x.dtype, "mlp_norm")(x + self.drop(y, keys, 1))
        return x, taken


@dataclasses.dataclass(frozen=True)
class Roberta(TextTransformer):
    """Tokens int32[B, L] -> features. Norms stand behind attention and MLP, the last one among
    them, so that there is no other at the end. Tokens that are ``pad_id`` are hidden and have no
    position of their own; places are counted from ``pad_id + 1`` over the others.
    """

    block_class: ClassVar[type[layers.Block]] = PostNormBlock

    def __post_init__(self) -> None:
        c = self.config
        if c.causal or c.pool in ("cls", "final") or not c.mask_padding:
            raise ValueError(
                f"model.text.kind='roberta' needs causal=False, mask_padding=True and pool='mean', "
                f"'last' or 'map', got {c.causal}, {c.mask_padding} and {c.pool!r}"
            )
        if rows(c) <= c.pad_id + c.context_length:
            raise ValueError(
                f"model.text.num_positions={c.num_positions} is too few for context_length="
                f"{c.context_length}: places are counted from pad_id + 1 = {c.pad_id + 1}"
            )

    @property
    def embedding(self) -> Any:
        return Embed(self.config, self.outer_dtype, parent=None)

    def head_parts(self, x: jax.Array) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
        return {name: part for name, part in super().head_parts(x).items() if name != "norm_post"}

    def normed(self, params: Params, x: jax.Array) -> jax.Array:
        """As they are: the last block ends with a norm."""
        return x

    def real(self, inputs: jax.Array, last: jax.Array) -> jax.Array:
        return inputs != self.config.pad_id

    def last(self, inputs: jax.Array) -> jax.Array:
        place = jnp.arange(inputs.shape[1], dtype=jnp.int32)
        return jnp.max(jnp.where(inputs != self.config.pad_id, place, 0), axis=1)

    def qkv(
        self, params: Params, x: jax.Array, block: int, turns: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del turns  # it has none
        attention = params[f"blocks_{block % self.config.depth}"]["attention"]
        linear = layers.dense(self.config.width, self.dtype, None, flat=self.flat_products)
        heads = []
        for name in ("query", "key", "value"):
            out: Any = linear.apply({"params": attention[name]}, x)
            heads.append(attend.split_heads(out, self.config.num_heads))
        query, key, value = heads
        return query, key, value


class Embed(nn.Module):
    """Token and position embeddings, normed."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, context: jax.Array | None = None, at: jax.Array | None = None
    ) -> jax.Array:
        """int32[B, L] -> [B, L, C]; context [M, C] or [B, M, C] replaces embeddings at ``at``."""
        c = self.config
        small = nn.initializers.normal(0.02)
        embedding = nn.Embed(
            c.vocab_size, c.width, dtype=self.dtype, embedding_init=small, name="token_embedding"
        )
        table = self.param("positions", small, (rows(c), c.width))
        # Of the first of two sentences; there is only that one.
        kind = self.param("token_type", small, (1, c.width))
        x = embedding(tokens)
        if context is not None and at is not None:
            x = features_lib.overwrite(x, features_lib.rows(context, x), at)
        real = (tokens != c.pad_id).astype(jnp.int32)
        places = jnp.cumsum(real, axis=1) * real + c.pad_id
        x = x + kind.astype(self.dtype) + jnp.take(table, places, axis=0).astype(self.dtype)
        return layers.norm(c.norm_eps, self.dtype, "norm_embed")(x)


def rows(config: TextConfig) -> int:
    """Rows of the table of positions."""
    return config.num_positions or config.context_length + config.pad_id + 1
