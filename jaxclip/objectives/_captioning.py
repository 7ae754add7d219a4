"""The decoder of objectives that write captions, for training and for writing them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig
from jaxclip.models.heads import AttentionPooler, CrossAttentionDecoder, caption_decoder
from jaxclip.objectives._base import Outputs, Params
from jaxclip.objectives._checks import check_heads


class Captioning:
    """What an objective with a caption decoder has beside its loss.

    The attributes are options of the objective, see :class:`jaxclip.objectives.coca.CoCa`.
    """

    num_queries: int
    depth: int
    from_embeddings: bool
    self_mlp: bool

    @property
    def text_start(self) -> str:
        """The output from which the decoder goes on."""
        return "text_hidden_0" if self.from_embeddings else "text_tokens"

    def _decoder(self, sizes: CLIPConfig, dtype: Any) -> CrossAttentionDecoder:
        return caption_decoder(sizes, depth=self.depth, self_mlp=self.self_mlp, dtype=dtype)

    def _pooler(self, sizes: CLIPConfig, dtype: Any) -> AttentionPooler:
        check_heads("coca.num_queries", sizes)
        image = sizes.image
        return AttentionPooler(self.num_queries, image.width, image.num_heads, dtype=dtype)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        image, text = jnp.zeros((1, 2, sizes.token_width)), jnp.zeros((1, 2, sizes.text.width))
        params = {"decoder": self._decoder(sizes, image.dtype).init(first, text, image)["params"]}
        if self.num_queries:
            params["pooler"] = self._pooler(sizes, image.dtype).init(second, image)["params"]
        return params

    def image_tokens(self, params: Params, tokens: jax.Array, sizes: CLIPConfig) -> jax.Array:
        """What the decoder looks at, [B, Q, C], of the image tower's tokens."""
        if not self.num_queries:
            return tokens
        pooler = {"params": params["pooler"]}
        pooled: Any = self._pooler(sizes, tokens.dtype).apply(pooler, tokens)
        return pooled

    def visual(self, params: Params, features: Any, sizes: CLIPConfig) -> jax.Array:
        """The same of :class:`jaxclip.models.Features` of pictures."""
        return self.image_tokens(params, features.tokens, sizes)

    def logits(
        self,
        params: Params,
        outputs: Outputs,
        sizes: CLIPConfig,
        *,
        at: jax.Array | int | None = None,
        shown: jax.Array | None = None,
    ) -> jax.Array:
        """float32[B, L, V]: what the decoder expects behind each token of a text.

        Args:
          params: of the term.
          outputs: ``image_tokens`` and the tokens of the text.
          sizes: of the model.
          at: the only place that is wanted, [B, 1, V]; None for all.
          shown: bool[B], rows whose picture is shown; zeros stand for it in others. None for all.
        """
        image = self.image_tokens(params, outputs["image_tokens"], sizes)
        if shown is not None:
            image = jnp.where(shown[:, None, None], image, 0.0)
        text = outputs[self.text_start]
        if sizes.text.pool == "cls" and self.from_embeddings:
            text = text[:, :-1]  # without the class token
        return self.decode(params, text, image, sizes, at=at)

    def decode(
        self,
        params: Params,
        text: jax.Array,
        image: jax.Array,
        sizes: CLIPConfig,
        *,
        at: jax.Array | int | None = None,
    ) -> jax.Array:
        """:meth:`logits` of what :meth:`image_tokens` gave."""
        decoder = {"params": params["decoder"]}
        out: Any = self._decoder(sizes, text.dtype).apply(decoder, text, image, at=at)
        return out
