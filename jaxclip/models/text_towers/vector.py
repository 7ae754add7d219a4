"""Texts that come as vectors of another model, such as a large language model's."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import attend, layers
from jaxclip.models.features import InsertLike, Tokens
from jaxclip.models.text import TextTransformer
from jaxclip.models.tower_parts import Params


class MLPBlock(layers.Block):
    """x + mlp(norm(x))."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        how: attend.How = attend.UNCHANGED,
        keys: jax.Array | None = None,
        turns: jax.Array | None = None,
    ) -> tuple[jax.Array, attend.Taken]:
        """As :meth:`jaxclip.models.layers.Block.__call__`; there is no attention."""
        del mask, turns
        y = layers.norm(self.norm_eps, self.dtype, "mlp_norm", self.variant.norm)(x)
        mlp = layers.MLP(self.mlp_dim, self.activation, self.dtype, self.flat, name="mlp")
        sums: list[jax.Array] | None = [] if how.sums else None
        x = x + self.drop(mlp(y, sums), keys, 1)
        return x, attend.Taken(sums=sums[0] if sums else None)


@dataclasses.dataclass(frozen=True)
class Vector(TextTransformer):
    """Vectors float[B, width] -> features: LLM2CLIP's adapter (Huang et al., 2024,
    arXiv:2411.04997).

    They are scaled to unit length and run through ``depth`` blocks x + MLP(norm(x)), a norm and the
    projection, a linear map with a bias where ``projection="linear_bias"``. LLM2CLIP: width 4096,
    depth 4, mlp_dim 8192. Depth 0 is a norm and a linear map, as LiT's head. Other
    sizes (vocabulary, context length, heads) mean nothing here. There is one token, the vector.
    """

    block_class: ClassVar[type[layers.Block]] = MLPBlock

    def init_embed(self, rng: jax.Array) -> dict[str, Any]:
        return {}

    def embed(
        self,
        params: Params,
        inputs: jax.Array,
        *,
        keep: jax.Array | None = None,
        insert: InsertLike = None,
        keys: jax.Array | None = None,
    ) -> Tokens:
        """The vectors as tokens [B, 1, width]; nothing may be asked.

        Raises:
          ValueError: no vectors of this width; ``keep`` or ``insert`` is given.
        """
        del params, keys
        width = self.config.width
        if not jnp.issubdtype(inputs.dtype, jnp.floating) or inputs.shape[1:] != (width,):
            raise ValueError(
                f"model.text.kind='vector' takes vectors float[B, {width}] of the model that made "
                f"them, got {inputs.dtype}{list(inputs.shape)}: make such vectors of prompts, too"
            )
        if keep is not None or insert is not None:
            raise ValueError("model.text.kind='vector' has no places to keep or to put tokens at")
        x = layers.unit(inputs)[:, None].astype(self.dtype)
        shape = (inputs.shape[0], 1)
        return Tokens(x, jnp.ones(shape, bool), jnp.zeros(shape[0], jnp.int32))
