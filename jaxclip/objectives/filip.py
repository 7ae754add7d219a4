"""FILIP: contrast by the best match of each patch and of each word."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part
from jaxclip.objectives._token_maps import init_maps, mapped_tokens

_MAX_LOGIT_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class FILIP(Objective):
    """Yao et al. 2021 (arXiv:2111.07783), as in DeCLIP's code beside CLIP's loss.

    Patch and word tokens go through linear maps of their own to unit length. An image is as similar
    to a text as its patches' best words, on average; a text to an image as its real words' best
    patches (:func:`jaxclip.losses.tokenwise_similarity`). Both rank the batch by a softmax under a
    scale of their own, at first 1 / 0.07. Padding is never a best word, which it is in DeCLIP's
    code. The mapped tokens of the whole batch are held, of their products only a tile.

    The paper has no other loss and compares by tokens at test time, too: ``contrastive=0``. But
    evaluation here compares embeddings, which CLIP's loss trains.

    Attributes:
      contrastive: weight of CLIP's loss.
      token_weight: of the contrast of tokens.
      features: that the maps give.
      keep_tokens: tokens of each side that are compared: those with the largest sum of products
        with the other side's of their own pair (16 in DeCLIP; the paper keeps a quarter, as far as
        remembered); 0 for all.
      tile_size: images and texts whose tokens are compared at a time.
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 1.0
    token_weight: float = 1.0
    features: int = 256
    keep_tokens: int = 0
    tile_size: int = 16
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"features": 8, "tile_size": 2, "keep_tokens": 4}

    def __post_init__(self) -> None:
        check_number("filip.contrastive", self.contrastive)
        check_choice("filip.implementation", self.implementation, IMPLEMENTATIONS)
        check_number("filip.token_weight", self.token_weight)
        check_count("filip.features", self.features)
        check_count("filip.keep_tokens", self.keep_tokens, 0)
        check_count("filip.tile_size", self.tile_size)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", "text_tokens", "text_mask"})

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        maps = init_maps(rng, sizes, self.features)
        return {**maps, "logit_scale": jnp.asarray(math.log(1 / 0.07), jnp.float32)}

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        images, texts = mapped_tokens(params, outputs, self.features, unit=True)
        mask = outputs["text_mask"]
        if self.keep_tokens:
            products = jax.lax.stop_gradient(jnp.einsum("bpd,bqd->bpq", images, texts))
            scores = jnp.sum(products, axis=2, where=mask[:, None])
            images = self._best(images, scores)
            scores = jnp.where(mask, jnp.sum(products, axis=1), -jnp.inf)
            texts, mask = self._best(texts, scores), self._best(mask, scores)
        return {"images": images, "texts": texts, "mask": mask}

    def _best(self, tokens: jax.Array, scores: jax.Array) -> jax.Array:
        """[B, N, ...] -> [B, K, ...], those with the largest scores, float32[B, N]."""
        _, chosen = jax.lax.top_k(scores, min(self.keep_tokens, scores.shape[1]))
        return jax.vmap(lambda row, places: row[places])(tokens, chosen)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        to_text, to_image = losses.tokenwise_similarity(
            outputs["images"],
            outputs["texts"],
            outputs["mask"],
            tile_size=self.tile_size,
            mesh=ctx.mesh,
        )
        scale = jnp.exp(jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE))
        label = jnp.arange(len(to_text))
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        rows, columns = (cross_entropy(scale * x, label) for x in (to_text, to_image.T))
        token = jnp.mean(rows + columns) / 2
        metrics |= {"token": token, "token_logit_scale": scale}
        metrics["token_accuracy"] = jnp.mean(jnp.argmax(to_text, axis=1) == label)
        return loss + self.token_weight * token, metrics, state
