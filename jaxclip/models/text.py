"""The text tower: a Transformer, causal as in CLIP or bidirectional as in SigLIP.

A text ends at its last token that is not ``pad_id``, 0. A 0 before that is no padding: in CLIP's
vocabulary it is the exclamation mark. Where padding is the end-of-text token itself, as SigLIP's 1,
the first one belongs to the text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import features as features_lib
from jaxclip.models import layers
from jaxclip.models.features import InsertLike, Tokens
from jaxclip.models.presets import TextConfig
from jaxclip.models.tower import Tower
from jaxclip.models.tower_parts import Params


@dataclasses.dataclass(frozen=True)
class TextTransformer(Tower):
    """Tokens int32[B, L], padded -> features; :meth:`encode` gives float[B, embed_dim]."""

    config: TextConfig

    @property
    def prefix(self) -> int:
        return 0

    @property
    def has_projection(self) -> bool:
        return self.config.projection != "none"

    @property
    def embedding(self) -> Any:
        """The first stage as an unbound module."""
        return Embed(self.config, self.outer_dtype, parent=None)

    @property
    def projection(self) -> Any:
        if self.config.projection != "mlp":
            return super().projection
        hidden = (self.config.width + self.embed_dim) // 2
        return MLPProjection(
            hidden, self.embed_dim, self.outer_dtype, self.flat_products, parent=None
        )

    def init_embed(self, rng: jax.Array) -> dict[str, Any]:
        tokens = jnp.ones((1, self.config.context_length), jnp.int32)
        drawn: Any = self.embedding.init(rng, tokens)
        return dict(drawn["params"])

    def random_rates(self) -> dict[str, float]:
        rate = self.config.dropout
        return {"model.text.dropout": rate} if rate else {}

    def embed(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        keep: jax.Array | None = None,
        insert: InsertLike = None,
        keys: jax.Array | None = None,
    ) -> Tokens:
        """Token embeddings with positions: the first stage.

        Args:
          params: of the tower.
          inputs: int32[B, L], L at most ``context_length``, padded with ``pad_id``.
          keep: int32[B, K], ascending, the places to run; None for all.
          insert: tokens put in at layer 0.
          keys: not used: nothing is random here.

        Raises:
          ValueError: texts longer than ``context_length``, or no whole numbers [B, L].
        """
        del keys
        c = self.config
        if jnp.ndim(inputs) != 2 or not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f"tokens of shape {list(jnp.shape(inputs))} and dtype {inputs.dtype}; the text "
                "tower takes int32[B, L]"
            )
        length = inputs.shape[1]
        if length > c.context_length:
            raise ValueError(
                f"tokens of shape {inputs.shape}: longer than model.text.context_length="
                f"{c.context_length}"
            )
        last, keys = self.last(inputs), None
        if c.pool == "cls":
            # The token behind padding is hidden, not the padding itself: so open_clip trained it.
            keys = jnp.pad(inputs != c.pad_id, ((0, 0), (1, 0)), constant_values=True)
        real = self.real(inputs, last)
        asked = features_lib.as_insert(insert, c.depth)
        context = at = None
        if asked is not None and asked.at is not None and 0 in asked.layers:
            context, at = asked.layers[0], asked.at
        with jax.named_scope(type(self).__name__):
            x: Any = self.embedding.apply({"params": params}, inputs, context, at)
            if keep is not None:
                behind = x[:, length:]  # the class token, where there is one
                x = jnp.take_along_axis(x, keep[:, :, None], axis=1)
                x = jnp.concatenate([x, behind], axis=1)
                real = jnp.take_along_axis(real, keep, axis=1)
                if keys is not None:
                    kept = jnp.take_along_axis(keys, keep, axis=1)
                    keys = jnp.concatenate([kept, keys[:, length:]], axis=1)
                last = jnp.maximum(jnp.sum(real, axis=1, dtype=jnp.int32) - 1, 0)
            tokens = Tokens(x, real, last, keys=keys)
            if asked is not None and asked.at is None and 0 in asked.layers:
                tokens = features_lib.put_in(tokens, asked, 0)
        return tokens

    def last(self, inputs: jax.Array) -> jax.Array:
        """Place of the last token of each text, int32[B]."""
        c = self.config
        return first_eos(inputs, c.eos_id) if c.pool == "eos" else last_token(inputs, c.pad_id)

    def real(self, inputs: jax.Array, last: jax.Array) -> jax.Array:
        """Which tokens are no padding, bool[B, L]."""
        return jnp.arange(inputs.shape[1]) <= last[:, None]

    def mask(self, tokens: Tokens) -> jax.Array | None:
        c = self.config
        if tokens.keys is not None:
            return features_lib.valid_keys(tokens.keys, tokens.inserted)
        if not c.mask_padding or c.causal:  # behind a causal mask no token sees the padding
            return None
        assert tokens.valid is not None
        return features_lib.valid_keys(tokens.valid, tokens.inserted)

    def pool(self, params: Params, tokens: Tokens) -> jax.Array:
        """[B, M+N, C] -> [B, C], of the text's own tokens."""
        c = self.config
        with jax.named_scope(type(self).__name__):
            if c.pool == "cls":
                return self.normed(params, tokens.x[:, -1])
            x = self.normed(params, tokens.x[:, tokens.inserted :] if tokens.inserted else tokens.x)
            if c.pool == "final":
                return x[:, -1]
            assert tokens.valid is not None and tokens.last is not None
            if c.pool in ("last", "eos"):
                return jnp.take_along_axis(x, tokens.last[:, None, None], axis=1)[:, 0]
            if c.pool == "mean":
                where = tokens.valid[:, :, None] if c.mask_padding else None
                return jnp.mean(x, axis=1, where=where)
            mask = features_lib.valid_keys(tokens.valid, 0) if c.mask_padding else None
            out: Any = self.attention_pool.apply({"params": params["attention_pool"]}, x, mask)
            return out

    def normed_tokens(self, params: Params, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        if self.config.pool != "cls":
            return super().normed_tokens(params, tokens)
        own = tokens.x[:, tokens.inserted :]
        return own[:, :-1], self.normed(params, own[:, -1:])


class MLPProjection(nn.Module):
    """Two linear layers without biases, a GELU between."""

    hidden: int
    features: int
    dtype: Any
    flat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"use_bias": False, "flat": self.flat}
        x = layers.dense(self.hidden, self.dtype, "hidden", **options)(x)
        x = layers.ACTIVATIONS["gelu"](x)
        return layers.dense(self.features, self.dtype, "out", **options)(x)


class Embed(nn.Module):
    """Token embeddings with positions."""

    config: TextConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, context: jax.Array | None = None, at: jax.Array | None = None
    ) -> jax.Array:
        """int32[B, L] -> [B, L, C], or [B, L+1, C] with the class token of ``pool="cls"`` behind.

        context [M, C] or [B, M, C] replaces embeddings at ``at``.
        """
        c = self.config
        embedding = nn.Embed(
            c.vocab_size,
            c.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="token_embedding",
        )
        small = nn.initializers.normal(0.01)
        rows = c.context_length + (c.pool == "cls")
        table = self.param("positions", small, (rows, c.width))
        x = embedding(tokens)
        if context is not None and at is not None:
            x = features_lib.overwrite(x, features_lib.rows(context, x), at)
        if c.pool == "cls":
            token = self.param("class_token", small, (c.width,)).astype(self.dtype)
            token = jnp.broadcast_to(token, (x.shape[0], 1, c.width))
            x = jnp.concatenate([x, token], axis=1)
        return x + table[: x.shape[1]].astype(self.dtype)


def last_token(tokens: jax.Array, pad_id: int = 0) -> jax.Array:
    """Place of the last token of a text, int32[B]; 0 in one without any.

    Args:
      tokens: int32[B, L].
      pad_id: what rows are filled with. Unless it is 0 it also ends the text: the first one behind
        the last other token is the last token.
    """
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if pad_id == 0:
        return jnp.max(jnp.where(tokens != pad_id, place, 0), axis=1)
    last = jnp.max(jnp.where(tokens != pad_id, place, -1), axis=1)
    return jnp.minimum(last + 1, tokens.shape[1] - 1)


def first_eos(tokens: jax.Array, eos_id: int) -> jax.Array:
    """Place of the first end-of-text token, int32[B]; 0 in a text without any, as in open_clip."""
    return jnp.argmax(tokens == eos_id, axis=1).astype(jnp.int32)
