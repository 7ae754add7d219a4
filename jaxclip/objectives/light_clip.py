"""LightCLIP: softened targets, matches of words with patches, and masked words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import CrossAttentionDecoder, caption_decoder
from jaxclip.objectives import _token_maps
from jaxclip.objectives._base import (
    Context,
    Metrics,
    Objective,
    Outputs,
    Params,
    State,
)
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._schedules import as_schedule


@dataclasses.dataclass(frozen=True)
class LightCLIP(Objective):
    """Nie et al. 2023, LightCLIP (arXiv:2312.00674): three helps for a small model.

    Recalled in outline; no code, and no default of the authors is known.

    (a) CLIP's loss with the target 1 - a on the pair and a on the others, in proportion to a
    softmax of what their similarities are now (no gradient); a grows. (b) matching * a contrast of
    texts with all images by their words: the mean over a text's real words of the largest cosine
    with a patch, both mapped linearly; no one-to-one assignment. (c) masked_words * cross-entropy
    of some of the words, replaced by a mask token, that a bidirectional decoder of few layers is to
    tell; in each of them it sees tokens that a linear map makes of the image's embedding. Its parts
    are dropped after training.

    Attributes:
      softness: a, a number or ``[[step, a], ...]``.
      matching: weight of (b).
      masked_words: weight of (c).
      mask_ratio: share of the words in (c).
      features: size of the space of (b).
      depth: layers of the decoder of (c).
      prefix: tokens that are made of an image's embedding for it.
      tile_size: images and texts whose tokens are compared at a time.
    """

    softness: Any = 0.1
    matching: float = 1.0
    masked_words: float = 1.0
    mask_ratio: float = 0.15
    features: int = 256
    depth: int = 2
    prefix: int = 4
    tile_size: int = 16

    small: ClassVar[Mapping[str, Any]] = {"features": 8, "depth": 1, "mask_ratio": 0.5}

    def __post_init__(self) -> None:
        for name in ("matching", "masked_words"):
            check_number(f"light_clip.{name}", getattr(self, name))
        check_number("light_clip.mask_ratio", self.mask_ratio, high=1.0, positive=True)
        for name in ("features", "depth", "prefix", "tile_size"):
            check_count(f"light_clip.{name}", getattr(self, name))
        as_schedule(self.softness, "light_clip.softness", 1.0)

    @property
    def needs(self) -> frozenset[str]:
        tokens = {"image_tokens", "text_tokens", "text_mask"} if self.matching else set()
        return frozenset({"image", "text", *tokens})

    @property
    def row_needs(self) -> frozenset[str]:
        own = {"image", "text_hidden_0", "text_mask", "text_input"} if self.masked_words else set()
        return frozenset(own)

    def _decoder(self, sizes: CLIPConfig, dtype: Any) -> CrossAttentionDecoder:
        return caption_decoder(sizes, depth=self.depth, dtype=dtype).clone(causal=False)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        keys, params = jax.random.split(rng, 4), dict[str, Any]()
        if self.matching:
            params |= _token_maps.init_maps(keys[0], sizes, self.features)
        if self.masked_words:
            text = jnp.zeros((1, 2, sizes.text.width))
            decoder = self._decoder(sizes, text.dtype).init(keys[1], text, text)
            shape = (sizes.text.context_length, sizes.text.width)
            masked = 0.02 * jax.random.normal(keys[2], shape)
            prefix = jax.random.normal(keys[3], (sizes.embed_dim, self.prefix, sizes.text.width))
            prefix *= sizes.embed_dim**-0.5
            params |= {"decoder": decoder["params"], "masked": masked, "prefix": prefix}
        return params

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        if not self.masked_words:
            return {}
        tokens, real = outputs["text_input"], outputs["text_mask"]
        text, length = outputs["text_hidden_0"][:, : tokens.shape[1]], tokens.shape[1]
        drawn = jax.vmap(lambda key: jax.random.bernoulli(key, self.mask_ratio, (length,)))
        chosen = drawn(ctx.row_keys()) & real
        masked = params["masked"][:length].astype(text.dtype)
        text = jnp.where(chosen[:, :, None], masked, text)
        image = jnp.einsum("bd,dnc->bnc", outputs["image"], params["prefix"], precision="highest")
        logits: Any = self._decoder(ctx.sizes, text.dtype).apply(
            {"params": params["decoder"]}, text, image, text_valid=real
        )
        return losses.token_sums(logits, tokens, chosen)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        logits = jnp.exp(ctx.logit_scale) * losses.products(outputs["image"], outputs["text"])
        soft = jnp.asarray(as_schedule(self.softness, "light_clip.softness")(ctx.step), jnp.float32)
        loss = (softened(logits, soft) + softened(logits.T, soft)) / 2
        metrics = {"soft": loss, "softness": soft, "accuracy": accuracy(logits)}
        if self.matching:
            images, words = _token_maps.mapped_tokens(params, outputs, self.features, unit=True)
            _, by_word = losses.tokenwise_similarity(
                images, words, outputs["text_mask"], tile_size=self.tile_size, mesh=ctx.mesh
            )
            by_word = jnp.exp(ctx.logit_scale) * by_word
            match = (softened(by_word, 0.0) + softened(by_word.T, 0.0)) / 2
            loss, metrics["matching"] = loss + self.matching * match, match
        if self.masked_words:
            count = jnp.maximum(jnp.sum(outputs["tokens"]), 1.0)
            words = jnp.sum(outputs["nll"]) / count
            loss, metrics["masked_words"] = loss + self.masked_words * words, words
            metrics["masked_words_accuracy"] = jnp.sum(outputs["hits"]) / count
        return loss, metrics, state


def softened(logits: jax.Array, softness: jax.Array | float) -> jax.Array:
    """Mean cross-entropy of rows to 1 - softness on the diagonal, and softness beside it in
    proportion to the softmax of the logits themselves, without a gradient.

    Args:
      logits: float32[B, B].
      softness: float32[] in [0, 1].
    """
    own = jnp.eye(len(logits), dtype=bool)
    others = jax.nn.softmax(jnp.where(own, -1e30, jax.lax.stop_gradient(logits)))
    target = jnp.where(own, 1.0 - softness, softness * others)
    return jnp.mean(losses.soft_cross_entropy(logits, target))


def accuracy(logits: jax.Array) -> jax.Array:
    """float32[]: the share of the rows of [B, B] whose own logit is the largest."""
    return jnp.mean(jnp.argmax(logits, axis=1) == jnp.arange(len(logits)), dtype=jnp.float32)
