"""Parts that objectives share: a projection MLP, a captioning decoder, a pooler with queries.

Linen modules, used through ``init`` and ``apply``; their parameters are the objective's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import layers
from jaxclip.models.layers import unit as to_unit
from jaxclip.models.presets import CLIPConfig

_NORMS = ("none", "batch", "layer")


class MLPHead(nn.Module):
    """A projection MLP, float[..., C] -> float32[..., features].

    SimCLR's and SLIP's is ``depth=3, width=4096, norm="batch"``, MoCo v3's and BYOL's end in
    ``final_norm="batch"``.

    Attributes:
      features: channels that come out.
      depth: linear layers, at least 1.
      width: channels between them.
      norm: after each linear layer but the last: ``"none"``, ``"layer"``, or ``"batch"``
        (:class:`BatchNorm`).
      final_norm: after the last one, without scale and bias.
      activation: between the layers, of :data:`ACTIVATIONS`.
      unit: whether rows are scaled to unit length.
      dtype: compute dtype.
    """

    features: int
    depth: int = 2
    width: int = 4096
    norm: str = "none"
    final_norm: str = "none"
    activation: str = "relu"
    unit: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.depth < 1:
            raise ValueError(f"depth={self.depth}; an MLP head has at least 1 linear layer")
        for option, value in (("norm", self.norm), ("final_norm", self.final_norm)):
            if value not in _NORMS:
                raise ValueError(f"{option}={value!r}; use {', '.join(map(repr, _NORMS))}")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation={self.activation!r}; use {known}")
        x = x.astype(self.dtype)
        for index in range(self.depth - 1):
            bias = self.norm == "none"  # a norm's own bias comes behind
            x = layers.dense(self.width, self.dtype, f"linear_{index}", use_bias=bias)(x)
            x = self.normed(x, self.norm, f"norm_{index}", affine=True)
            x = ACTIVATIONS[self.activation](x)
        bias = self.final_norm == "none"
        x = layers.dense(self.features, self.dtype, "out", use_bias=bias)(x)
        x = self.normed(x, self.final_norm, "norm_out", affine=False)
        return to_unit(x) if self.unit else x.astype(jnp.float32)

    def normed(self, x: jax.Array, norm: str, name: str, *, affine: bool) -> jax.Array:
        if norm == "none":
            return x
        if norm == "batch":
            return BatchNorm(affine=affine, dtype=self.dtype, name=name)(x)
        return nn.LayerNorm(use_scale=affine, use_bias=affine, dtype=self.dtype, name=name)(x)


class BatchNorm(nn.Module):
    """Batch norm by the statistics of the batch at hand (Ioffe & Szegedy, 2015); no state.

    The mean and variance are of all leading axes, over all devices. A head that serves in training
    alone needs no running averages. With gradient accumulation the batch at hand is a micro-batch,
    which gives other numbers than the whole batch.

    Attributes:
      affine: learn a scale and a bias.
      epsilon: added to the variance.
      dtype: of the result; statistics are float32.
    """

    affine: bool = True
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean = y.mean(axes)
        variance = jnp.square(y - mean).mean(axes)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            y = y * self.param("scale", nn.initializers.ones, (x.shape[-1],))
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(self.dtype)


class CrossAttentionDecoder(nn.Module):
    """A causal Transformer over text that looks at image tokens (CoCa, Yu et al., 2022).

    A layer is x + self_attention(norm(x)), x + cross_attention(norm(x), norm(image)), x +
    mlp(norm(x)). Place i of the result is about token i+1.

    Attributes:
      width, depth, num_heads, mlp_dim, activation, norm_eps: as in a tower.
      vocab_size: size of its own vocabulary projection; 0 for none.
      causal: no place sees those behind it.
      self_mlp: an MLP of its own behind self-attention, too, as in open_clip.
      dtype: compute dtype.
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    vocab_size: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    causal: bool = True
    self_mlp: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        text: jax.Array,
        image: jax.Array,
        *,
        text_valid: jax.Array | None = None,
        image_valid: jax.Array | None = None,
        embedding: jax.Array | None = None,
        at: jax.Array | int | None = None,
    ) -> jax.Array:
        """Decode.

        Args:
          text: [B, L, C_text], embedded tokens or a text tower's ``tokens``; projected to ``width``
            where they are of another one.
          image: [B, N, C_image].
          text_valid: bool[B, L], False for padding, which then nothing sees; or bool[B, L, L], what
            each place sees of the others; None for all.
          image_valid: bool[B, N], or None for all.
          embedding: float[V, width], a table that the logits are tied to, in place of its own
            projection.
          at: int32[], the only place whose result is wanted; None for all of them.

        Returns:
          Logits float32[B, L, V] ([B, 1, V] with ``at``); with neither vocabulary nor table the
          normed states [B, L, width].

        Raises:
          ValueError: both a vocabulary and a table, or a table of another width.
        """
        if embedding is not None and (self.vocab_size or embedding.shape[-1] != self.width):
            raise ValueError(
                f"embedding of shape {embedding.shape} with vocab_size={self.vocab_size}; use "
                f"[V, {self.width}] and vocab_size=0 to tie logits to it"
            )
        x = text.astype(self.dtype)
        if x.shape[-1] != self.width:
            x = layers.dense(self.width, self.dtype, "text_in")(x)
        for index in range(self.depth):
            x = DecoderBlock(
                self.num_heads,
                self.mlp_dim,
                self.activation,
                self.norm_eps,
                self.dtype,
                self.causal,
                self.self_mlp,
                name=f"blocks_{index}",
            )(x, image.astype(self.dtype), _keys(text_valid), _keys(image_valid))
        if at is not None:
            x = jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1)
        x = layers.norm(self.norm_eps, self.dtype, "norm_post")(x)
        if embedding is not None:
            table = embedding.astype(self.dtype)
            return jnp.einsum("blc,vc->blv", x, table, preferred_element_type=jnp.float32)
        if not self.vocab_size:
            return x
        init = nn.initializers.normal(self.width**-0.5)
        logits = layers.dense(self.vocab_size, self.dtype, "logits", use_bias=False, init=init)(x)
        return logits.astype(jnp.float32)


# What a captioning decoder has of the text tower.
_OF_TEXT = ("width", "num_heads", "mlp_dim", "vocab_size", "activation", "norm_eps")


def caption_decoder(
    sizes: CLIPConfig, *, depth: int = 0, self_mlp: bool = False, dtype: Any = jnp.float32
) -> CrossAttentionDecoder:
    """The decoder that goes on from a model's text tower.

    Args:
      sizes: of the model; width, heads, MLP, vocabulary and arithmetic are those of its text.
      depth: layers; 0 for as many as the text tower has.
      self_mlp: see :class:`CrossAttentionDecoder`.
      dtype: compute dtype.
    """
    shared = {name: getattr(sizes.text, name) for name in _OF_TEXT}
    return CrossAttentionDecoder(
        **shared, depth=depth or sizes.text.depth, self_mlp=self_mlp, dtype=dtype
    )


class DecoderBlock(nn.Module):
    """A layer of :class:`CrossAttentionDecoder`."""

    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: Any
    causal: bool
    self_mlp: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        image: jax.Array,
        text_mask: jax.Array | None,
        image_mask: jax.Array | None,
    ) -> jax.Array:
        """[B, L, C], [B, N, C_image] -> [B, L, C]; masks bool, broadcast to [B, H, L, keys]."""

        def norm(name: str) -> nn.LayerNorm:
            return layers.norm(self.norm_eps, self.dtype, name)

        attention = layers.Attention(self.num_heads, self.dtype, name="attention")
        y = norm("attention_norm")(x)
        x = x + attention(y, y, mask=text_mask, causal=self.causal)[0]
        if self.self_mlp:
            y = norm("self_mlp_norm")(x)
            x = x + layers.MLP(self.mlp_dim, self.activation, self.dtype, name="self_mlp")(y)
        cross = layers.Attention(self.num_heads, self.dtype, name="cross_attention")
        y, keys = norm("cross_norm")(x), norm("image_norm")(image)
        x = x + cross(y, keys, mask=image_mask, causal=False)[0]
        y = norm("mlp_norm")(x)
        return x + layers.MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(y)


class AttentionPooler(nn.Module):
    """Learned queries look at all tokens (CoCa's poolers; Lee et al., 2019, Set Transformer).

    Attributes:
      num_queries: n; 1 for one vector, 256 for CoCa's captioner.
      width: channels that come out.
      num_heads: attention heads.
      norm_eps: epsilon of the norms of queries and tokens.
      dtype: compute dtype.
    """

    num_queries: int
    width: int
    num_heads: int
    norm_eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Pool.

        Args:
          x: [B, N, C].
          valid: bool[B, N], tokens to look at; None for all.

        Returns:
          [B, num_queries, width].
        """
        shape = (self.num_queries, self.width)
        queries = self.param("queries", nn.initializers.normal(0.02), shape)
        queries = layers.norm(self.norm_eps, self.dtype, "query_norm")(queries.astype(self.dtype))
        queries = jnp.broadcast_to(queries, (x.shape[0], *shape))
        keys = layers.norm(self.norm_eps, self.dtype, "token_norm")(x.astype(self.dtype))
        attention = layers.Attention(self.num_heads, self.dtype, name="attention")
        return attention(queries, keys, mask=_keys(valid), causal=False)[0]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": nn.relu, **layers.ACTIVATIONS}


def _keys(valid: jax.Array | None) -> jax.Array | None:
    """bool[B, K] or bool[B, Q, K] -> bool[B, 1, 1 or Q, K]."""
    if valid is None:
        return None
    return valid[:, None, None, :] if valid.ndim == 2 else valid[:, None]
