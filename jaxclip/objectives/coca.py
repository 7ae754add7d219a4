"""CoCa: contrast, and a decoder that writes the caption of the picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._captioning import Captioning
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class CoCa(Captioning, Objective):
    """Yu et al. 2022 (arXiv:2205.01917): CLIP + caption_weight * captioning.

    The text tower is the unimodal half; a causal decoder of as many layers goes on from its tokens
    and looks at the picture through learned queries. Captioning is the mean cross-entropy of the
    next token over all tokens of the global batch up to a text's last one. The text's embedding is
    that of its last token (the end of text), which sees all others, too, and none sees it; with
    ``model.text.pool="cls"`` that of the class token that CoCa appends. The image's embedding is
    the tower's own, where the paper pools once more.

    open_clip's CoCa is ``num_queries=0, self_mlp=True`` with ``model.image.pool="queries"``, whose
    first query is the image's embedding and whose others are what the decoder looks at. Its
    weights start such a run, decoder and all (``config.init_from``), and :meth:`Model.caption
    <jaxclip.inference.Model.caption>` writes captions with them.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      caption_weight: of captioning.
      num_queries: image tokens for the decoder, 256 in the paper; 0 for all patches as they are.
      depth: layers of the decoder; 0 for as many as the text tower has (open_clip).
      from_embeddings: the decoder starts from the token embeddings, as it must where the text tower
        is bidirectional and so knows the tokens to predict.
      self_mlp: the decoder's layers have an MLP behind self-attention, too (open_clip).
      drop_image: share of the rows whose picture the decoder is not shown, so that captions can be
        guided (Kornblith et al. 2023, arXiv:2307.16686, whose rate is not known).
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 1.0
    caption_weight: float = 2.0
    num_queries: int = 256
    depth: int = 0
    from_embeddings: bool = False
    self_mlp: bool = False
    drop_image: float = 0.0
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"num_queries": 5, "from_embeddings": True}

    def __post_init__(self) -> None:
        method = self.method()
        check_number(f"{method}.contrastive", self.contrastive)
        check_choice(f"{method}.implementation", self.implementation, IMPLEMENTATIONS)
        check_number(f"{method}.caption_weight", self.caption_weight)
        check_number(f"{method}.drop_image", self.drop_image, high=1.0)
        check_count(f"{method}.num_queries", self.num_queries, 0)
        check_count(f"{method}.depth", self.depth, 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", self.text_start, "text_mask", "text_input"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if not (sizes.text.causal or self.from_embeddings):
            raise ValueError(
                "coca: with model.text.causal=False the text tower shows the decoder the tokens "
                "that it is to predict; set coca's from_embeddings=True or model.text.causal=True"
            )

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        shown = None
        if self.drop_image:
            chance = 1.0 - self.drop_image
            shown = jax.vmap(lambda key: jax.random.bernoulli(key, chance))(ctx.row_keys())
        logits = self.logits(params, outputs, ctx.sizes, shown=shown)[:, :-1]
        return losses.token_sums(logits, outputs["text_input"][:, 1:], outputs["text_mask"][:, 1:])

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        count = jnp.maximum(jnp.sum(outputs["tokens"]), 1.0)
        caption = jnp.sum(outputs["nll"]) / count
        metrics |= {"caption": caption, "caption_accuracy": jnp.sum(outputs["hits"]) / count}
        return loss + self.caption_weight * caption, metrics, state
