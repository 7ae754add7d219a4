"""What both towers are made of: attention, MLP, the pre-norm block, attention pooling.

The linear maps and norms in them are those of :mod:`jaxclip.models.linear`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxclip.models import dropout as dropout_lib
from jaxclip.models import experts as experts_lib
from jaxclip.models import sparse_activation
from jaxclip.models.attend import (
    UNCHANGED,
    How,
    Taken,
    join_heads,
    largest_scores,
    own_weights,
    score_bias,
    split_heads,
)
from jaxclip.models.linear import dense as dense
from jaxclip.models.linear import head_norm as head_norm
from jaxclip.models.linear import norm as norm
from jaxclip.models.linear import qkv_layers as qkv_layers
from jaxclip.models.linear import unit as unit
from jaxclip.models.rotary import rotate

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    # x * sigmoid(1.702 x), as in OpenAI's own models.
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": nn.silu,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """One of :data:`ACTIVATIONS`, or :func:`jaxclip.models.sparse_activation.parse`."""
    return sparse_activation.parse(name) or ACTIVATIONS[name]


# Of `jax.nn.dot_product_attention`; or a function such as `fused_attention`, which serves where
# there is no mask.
Implementation = str | Callable[..., jax.Array] | None


class Variant(NamedTuple):
    """What a block has beside the plain pre-norm one, which the default is.

    Attributes:
      norm: ``"layer"`` or ``"rms"``.
      norm_place: ``"pre"``, or ``"post"`` for x + norm(f(x)), the norm on the branch.
      qkv_bias: ``"all"``, ``"qv"`` (keys have none) or ``"none"``.
      mlp: ``"plain"``, or ``"gated"`` for down(activation(gate(x)) * up(x)).
      sub_norm: a norm before the output maps of attention and MLP.
      layer_scale: initial value of a learned scale of each channel that a branch adds, 0 among
        them; None for none.
      qk_norm: layer norms (without bias) of each head's queries and keys, with gains that the heads
        share (Dehghani et al., 2023, arXiv:2302.05442).
      attention_soft_cap: c, scores become c tanh(scores / c) (Gemma 2); 0 for none.
      score_scale: another factor on q·k / sqrt(d).
      head_dim: channels of a head; 0 for the width over the number of heads.
      num_experts: E, MLPs of which a token takes some (:mod:`jaxclip.models.experts`); 0 for one.
      experts_per_token: k.
      expert_capacity: c, an expert takes at most ceil(c k L / E) of a row's tokens; 0 for any
        number.
    """

    norm: str = "layer"
    norm_place: str = "pre"
    qkv_bias: str = "all"
    mlp: str = "plain"
    sub_norm: bool = False
    layer_scale: float | None = None
    qk_norm: bool = False
    attention_soft_cap: float = 0.0
    score_scale: float = 1.0
    head_dim: int = 0
    num_experts: int = 0
    experts_per_token: int = 2
    expert_capacity: float = 0.0


PLAIN = Variant()


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V (Vaswani et al., 2017, equation 1)."""

    num_heads: int
    dtype: Any
    implementation: Implementation = None
    flat: bool = False
    variant: Variant = PLAIN
    norm_eps: float = 1e-5
    result_dtype: Any = None

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array,
        *,
        mask: jax.Array | None,
        causal: bool,
        how: How = UNCHANGED,
        turns: jax.Array | None = None,
    ) -> tuple[jax.Array, Taken]:
        """[B, Q, C], [B, K, C] -> [B, Q, C] and what was asked for.

        mask: bool, broadcast to [B, heads, Q, K]. turns: rotary angles of queries and keys, which
        are the same tokens then (:func:`jaxclip.models.rotary.rotate`).
        """
        width = queries.shape[-1]
        inner = self.num_heads * self.variant.head_dim or width

        query, key, value = (
            checkpoint_name(layer(x), "qkv")
            for layer, x in zip(
                qkv_layers(inner, self.dtype, self.variant.qkv_bias, self.flat),
                (queries, keys, keys),
                strict=True,
            )
        )
        if self.variant.qk_norm:
            query, key = (
                head_norm(self.norm_eps, self.dtype, name)(
                    x.reshape(*x.shape[:-1], self.num_heads, -1)
                ).reshape(x.shape)
                for name, x in (("query_norm", query), ("key_norm", key))
            )
        if turns is not None:
            query, key = (turn_heads(x, self.num_heads, turns) for x in (query, key))
        if self.variant.score_scale != 1.0:
            query = query * jnp.asarray(self.variant.score_scale, query.dtype)
        largest = None
        if how.largest:
            largest = largest_scores(query, key, self.num_heads, mask, causal)
        weights = None
        if how.attend.fn is not None or how.weights or self.variant.attention_soft_cap:
            out, weights = self.explicit(query, key, value, mask, causal, how)
        elif (
            callable(self.implementation) and mask is None and how.bias is None and queries is keys
        ):
            out = self.implementation(query, key, value, num_heads=self.num_heads, causal=causal)
        else:
            shape = (-1, self.num_heads, inner // self.num_heads)
            implementation: Any = None if callable(self.implementation) else self.implementation
            out = jax.nn.dot_product_attention(
                query.reshape(query.shape[0], *shape),
                key.reshape(key.shape[0], *shape),
                value.reshape(value.shape[0], *shape),
                how.bias,
                mask,
                is_causal=causal,
                implementation=implementation,
            )
        out = checkpoint_name(out.reshape(*queries.shape[:-1], inner), "attention_out")
        if self.variant.sub_norm:
            out = norm(self.norm_eps, self.dtype, "sub_norm", self.variant.norm)(out)
        out = dense(width, self.dtype, "out", flat=self.flat, result_dtype=self.result_dtype)(out)
        return out, Taken(weights if how.weights else None, largest)

    def explicit(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None,
        causal: bool,
        how: How,
    ) -> tuple[jax.Array, jax.Array]:
        """Attention by its weights: [B, Q, C] before the output layer, float32[B, H, Q, K].

        Raises:
          ValueError: weights of an attention function that don't broadcast to [B, H, L, L].
        """
        bias = score_bias(how.bias, mask, causal, (query.shape[1], key.shape[1]))
        query, key, value = (split_heads(x, self.num_heads) for x in (query, key, value))
        own = functools.partial(own_weights, soft_cap=self.variant.attention_soft_cap)
        weights = (how.attend.fn or own)(query, key, value, bias)
        shape = (*query.shape[:3], key.shape[2])
        try:
            weights = jnp.broadcast_to(weights, shape)
        except ValueError:
            raise ValueError(
                f"an attention function gave weights of shape {jnp.shape(weights)}; they must "
                f"broadcast to [B, H, L, L] = {shape}"
            ) from None
        return join_heads(
            jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value)
        ), weights


class MLP(nn.Module):
    """Two linear layers with an activation between.

    Gated, the activation is of a third layer, which multiplies (SwiGLU with ``"silu"``; Shazeer,
    2020, arXiv:2002.05202).
    """

    mlp_dim: int
    activation: str
    dtype: Any
    flat: bool = False
    variant: Variant = PLAIN
    norm_eps: float = 1e-5
    result_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, sums: list[jax.Array] | None = None) -> jax.Array:
        """[B, L, C] -> [B, L, C]; a list gets :func:`activation_sums` of what is between."""
        linear = functools.partial(dense, flat=self.flat, result_dtype=self.result_dtype)
        hidden = linear(self.mlp_dim, self.dtype, "up")(x)
        hidden = checkpoint_name(hidden, "mlp_hidden")
        if self.variant.mlp == "gated":
            gate = linear(self.mlp_dim, self.dtype, "gate")(x)
            gate = checkpoint_name(gate, "mlp_hidden")
            hidden = activation(self.activation)(gate) * hidden
        else:
            hidden = activation(self.activation)(hidden)
        if sums is not None:
            sums.append(activation_sums(hidden))
        if self.variant.sub_norm:
            hidden = norm(self.norm_eps, self.dtype, "sub_norm", self.variant.norm)(hidden)
        return linear(x.shape[-1], self.dtype, "down")(hidden)


class Block(nn.Module):
    """A Transformer block: x + attention(norm(x)), then x + mlp(norm(x)), or a variant of it."""

    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: Any
    causal: bool = False
    implementation: Implementation = None
    flat: bool = False
    dropout: float = 0.0
    variant: Variant = PLAIN
    result_dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        how: How = UNCHANGED,
        keys: jax.Array | None = None,
        turns: jax.Array | None = None,
    ) -> tuple[jax.Array, Taken]:
        """[B, L, C] -> [B, L, C] and what was asked for.

        Args:
          x: input.
          mask: as in :class:`Attention`.
          how: what the caller changes.
          keys: a PRNG key for each row, [B], for dropout of what attention and MLP add; None for
            no dropout.
          turns: rotary angles float32[L, d / 2] or [B, L, d / 2], None for none.
        """
        variant, post = self.variant, self.variant.norm_place == "post"
        sizes: dict[str, Any] = {
            "variant": variant,
            "norm_eps": self.norm_eps,
            "flat": self.flat,
            "result_dtype": self.result_dtype,
        }
        attention_norm, mlp_norm = (
            norm(self.norm_eps, self.dtype, name, variant.norm)
            for name in ("attention_norm", "mlp_norm")
        )
        attention = Attention(
            self.num_heads, self.dtype, self.implementation, name="attention", **sizes
        )
        y = x if post else attention_norm(x)
        y, taken = attention(y, y, mask=mask, causal=self.causal, how=how, turns=turns)
        y = self.drop(self.scale(attention_norm(y) if post else y, "attention"), keys, 0)
        x = x + y if how.attend.residual else y.astype(x.dtype)
        if how.attend.mlp:
            y = x if post else mlp_norm(x)
            if variant.num_experts:
                y, router = self.experts(y)
                taken = taken._replace(router=router)
            else:
                sums: list[jax.Array] | None = [] if how.sums else None
                y = MLP(self.mlp_dim, self.activation, self.dtype, name="mlp", **sizes)(y, sums)
                taken = taken._replace(sums=sums[0] if sums else None)
            y = mlp_norm(y) if post else y
            x = x + self.drop(self.scale(y, "mlp"), keys, 1)
        return x, taken

    def experts(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, L, C] -> [B, L, C], what takes the MLP's place, and what its router did."""
        variant = self.variant
        mixture = experts_lib.Experts(
            variant.num_experts,
            self.mlp_dim,
            activation(self.activation),
            self.dtype,
            variant.experts_per_token,
            variant.expert_capacity,
            name="mlp",
        )
        return mixture(x)

    def scale(self, x: jax.Array, branch: str) -> jax.Array:
        """[..., C] times the branch's gains [C], if it has any (LayerScale, Touvron et al., 2021,
        arXiv:2103.17239)."""
        initial = self.variant.layer_scale
        if initial is None:
            return x
        start = nn.initializers.constant(initial)
        return x * self.param(f"{branch}_scale", start, x.shape[-1:]).astype(self.dtype)

    def drop(self, x: jax.Array, keys: jax.Array | None, place: int) -> jax.Array:
        if keys is None or not self.dropout:
            return x
        return dropout_lib.dropout(x, dropout_lib.fold_in(keys, place), self.dropout)


class AttentionPool(nn.Module):
    """Attention pooling: one learned query looks at all places (SigLIP's MAP head)."""

    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dtype: Any
    flat: bool = False
    probe_init: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """[B, L, C] -> [B, C]; ``bias`` float32[B, L] is added to the scores."""
        drawn = self.probe_init or nn.initializers.xavier_uniform()
        probe = self.param("probe", drawn, (1, 1, x.shape[-1]))
        probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, x.shape[-1]))
        attention = Attention(self.num_heads, self.dtype, flat=self.flat, name="attention")
        how = UNCHANGED if bias is None else How(bias=bias[:, None, None, :])
        x, _ = attention(probe, x, mask=mask, causal=False, how=how)
        y = norm(self.norm_eps, self.dtype, "norm")(x)
        y = MLP(self.mlp_dim, self.activation, self.dtype, self.flat, name="mlp")(y)
        return (x + y)[:, 0]


def activation_sums(hidden: jax.Array) -> jax.Array:
    """Sums of clip(x, 0, 1) and of its square over a row's places and units.

    Args:
      hidden: [B, L, M], what the activation gives, of a gated MLP the product.

    Returns:
      float32[B, 2].
    """
    clipped = jnp.clip(hidden, 0.0, 1.0).astype(jnp.float32)
    return jnp.stack([jnp.sum(clipped, axis=(1, 2)), jnp.sum(clipped**2, axis=(1, 2))], axis=1)


def turn_heads(x: jax.Array, num_heads: int, turns: jax.Array) -> jax.Array:
    """Rotary positions of [B, L, C]; see :func:`jaxclip.models.rotary.rotate`."""
    return rotate(x.reshape(*x.shape[:2], num_heads, -1), turns).reshape(x.shape)
