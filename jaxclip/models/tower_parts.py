"""What a tower is made of: blocks, last norm, pool and projection, as modules without parameters.

The stages that they are put together to are in :mod:`jaxclip.models.tower`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import attend as attend_lib
from jaxclip.models import layers, mup

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TowerOptions:
    """What a tower of any kind is made with.

    Attributes:
      config: sizes (:class:`jaxclip.models.presets.ImageConfig`, ``TextConfig``, or those of
        another kind of tower).
      embed_dim: size of the joint space, D.
      dtype: compute dtype.
      remat: what blocks compute again in the backward pass, see :mod:`jaxclip.models.remat`.
      scan_layers: loop over blocks in place of unrolling. Blocks that a caller asks something of
        run by themselves, between loops.
      attention_implementation: as in :func:`jaxclip.models.clip.build`.
      gather_block: function of a block's parameters and its name that makes of them what the block
        uses.
      flat_products: see :func:`jaxclip.models.linear.dense`.
      residual_dtype: of the tokens between the blocks, and of what is before and behind these
        (embedding, last norm, pooling, projection), and of the blocks' products where a sum or an
        activation follows; None for ``dtype``.
    """

    config: Any
    embed_dim: int
    dtype: Any = jnp.float32
    remat: str = "none"
    scan_layers: bool = False
    attention_implementation: layers.Implementation = None
    gather_block: Callable[..., Any] | None = None
    flat_products: bool = False
    residual_dtype: Any = None

    # Whether `residual_dtype` says anything; where not, all is computed in `dtype`.
    has_residual_dtype: ClassVar[bool] = True

    @property
    def outer_dtype(self) -> Any:
        """What everything but the inside of the blocks computes in."""
        if self.residual_dtype is None or not self.has_residual_dtype:
            return self.dtype
        return self.residual_dtype


@dataclasses.dataclass(frozen=True)
class TowerParts(TowerOptions):
    """The modules of a Transformer of these sizes."""

    # What the blocks are, with the fields of a plain one.
    block_class: ClassVar[type[layers.Block]] = layers.Block

    # The pieces, as unbound modules; `apply` gives them their parameters.

    @property
    def block(self) -> layers.Block:
        c = self.config
        return self.block_class(
            num_heads=c.num_heads,
            mlp_dim=c.mlp_dim,
            activation=c.activation,
            norm_eps=c.norm_eps,
            dtype=self.dtype,
            causal=getattr(c, "causal", False),
            implementation=self.attention_implementation,
            flat=self.flat_products,
            dropout=c.dropout,
            variant=self.variant,
            result_dtype=None if self.outer_dtype == self.dtype else self.outer_dtype,
            parent=None,
        )

    def at(self, block: layers.Block, index: int) -> layers.Block:
        """A block at its place: those before the last ``expert_blocks`` have no experts."""
        if not block.variant.num_experts or index >= self.first_expert:
            return block
        return block.clone(variant=block.variant._replace(num_experts=0))

    @property
    def first_expert(self) -> int:
        """The first block with experts; the depth where there is none."""
        c = self.config
        if not getattr(c, "num_experts", 0):
            return int(c.depth)
        return int(c.depth - (c.expert_blocks or c.depth))

    @property
    def variant(self) -> layers.Variant:
        """What the blocks have beside the plain ones, of the fields that the configuration has."""
        fields = {name: getattr(self.config, name, None) for name in layers.Variant._fields}
        fields["score_scale"] = mup.attention_scale(self.config)
        return layers.PLAIN._replace(**{k: v for k, v in fields.items() if v is not None})

    @property
    def norm_post(self) -> nn.Module:
        norm: nn.Module = layers.norm(
            self.config.norm_eps, self.outer_dtype, None, self.variant.norm
        )
        return norm

    @property
    def attention_pool(self) -> layers.AttentionPool:
        c = self.config
        return layers.AttentionPool(
            getattr(c, "pool_heads", 0) or c.num_heads,
            getattr(c, "pool_mlp_dim", 0) or c.mlp_dim,
            c.activation,
            c.norm_eps,
            self.outer_dtype,
            self.flat_products,
            mup.input_init(c),
            parent=None,
        )

    @property
    def projection(self) -> nn.Dense:
        return layers.dense(
            self.embed_dim,
            self.outer_dtype,
            None,
            use_bias=self.config.projection == "linear_bias",
            init=nn.initializers.normal(self.config.width**-0.5),
            flat=self.flat_products,
        )

    # Parts of a block, for methods that take one to pieces.

    def qkv(
        self, params: Params, x: jax.Array, block: int, turns: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values that a block makes of its input, as its scores are made of them.

        Args:
          params: of the tower.
          x: [B, L, C], what comes into the block.
          block: its index, -1 = the last.
          turns: rotary angles (:meth:`turns`), where the tower has them; None leaves them out.

        Returns:
          Three arrays [B, H, L, C / H].
        """
        p = params[f"blocks_{block % self.config.depth}"]
        y: Any = x
        if self.variant.norm_place == "pre":
            norm = layers.norm(self.config.norm_eps, self.dtype, None, self.variant.norm)
            y = norm.apply({"params": p["attention_norm"]}, x)
        linear = layers.qkv_layers(
            self.config.num_heads * self.config.head_size,
            self.dtype,
            self.variant.qkv_bias,
            self.flat_products,
            names=False,
        )
        heads = []
        for name, layer in zip(("query", "key", "value"), linear, strict=True):
            out: Any = layer.apply({"params": p["attention"][name]}, y)
            if self.variant.qk_norm and name != "value":
                own = layers.head_norm(self.config.norm_eps, self.dtype, None)
                each = out.reshape(*out.shape[:-1], self.config.num_heads, -1)
                normed: Any = own.apply({"params": p["attention"][f"{name}_norm"]}, each)
                out = normed.reshape(out.shape)
            if turns is not None and name != "value":
                out = layers.turn_heads(out, self.config.num_heads, turns)
            heads.append(attend_lib.split_heads(out, self.config.num_heads))
        query = heads[0]
        if self.variant.score_scale != 1.0:
            query = query * jnp.asarray(self.variant.score_scale, query.dtype)
        return query, heads[1], heads[2]

    def attention_out(
        self, params: Params, weights: jax.Array, value: jax.Array, block: int
    ) -> jax.Array:
        """What a block's attention gives for these weights: out(A V), [B, Q, C].

        Args:
          params: of the tower.
          weights: [B, H, Q, K].
          value: [B, H, K, C / H].
          block: its index, -1 = the last.
        """
        p = params[f"blocks_{block % self.config.depth}"]["attention"]
        x = attend_lib.join_heads(jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value))
        if self.variant.sub_norm:
            norm = layers.norm(self.config.norm_eps, self.dtype, None, self.variant.norm)
            x = norm.apply({"params": p["sub_norm"]}, x)
        linear = layers.dense(self.config.width, self.dtype, None, flat=self.flat_products)
        out: Any = linear.apply({"params": p["out"]}, x)
        return out


class Parts(nn.Module):
    """Draws the parameters of unbound modules under their names."""

    names: tuple[str, ...]
    part: Callable[[str], tuple[nn.Module, tuple[Any, ...]]]

    @nn.compact
    def __call__(self) -> None:
        for name in self.names:
            module, args = self.part(name)
            module.clone(name=name, parent=self)(*args)  # type: ignore[operator]
