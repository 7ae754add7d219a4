"""SPARC: contrast, and words that find their own patches within the pair."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives.contrastive import Contrastive

_MAX_LOGIT_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class SPARC(Contrastive):
    """Bica et al. 2024 (arXiv:2401.09865): CLIP / 2 + words and their patches.

    Linear maps bring patches and words to one space. Each word gets a group of patches
    (:func:`jaxclip.losses.group_weights`). By it the word is told from the other words of its
    caption, and the group from theirs by the word, under a learned scale: no other pair is needed.
    The loss is the mean over all real words of the global batch. Words that occur twice are false
    negatives.

    The weights are as remembered from the paper, which has no code. Its embeddings are means of the
    mapped tokens, where here they are the towers' own: give them ``pool="mean"`` to be like it.

    The other options are those of :class:`Contrastive`.

    Attributes:
      contrastive: weight of the contrastive loss.
      local_weight: of words and groups.
      features: of the space.
    """

    contrastive: float = 0.5
    local_weight: float = 1.0
    features: int = 512

    small: ClassVar[Mapping[str, Any]] = {"features": 8}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sparc.contrastive", self.contrastive)
        check_number("sparc.local_weight", self.local_weight)
        check_count("sparc.features", self.features)

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", "text_tokens", "text_mask"})

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        head = MLPHead(self.features, depth=1)
        return {
            "image": head.init(first, jnp.zeros((1, sizes.image.width)))["params"],
            "text": head.init(second, jnp.zeros((1, sizes.text.width)))["params"],
            "logit_scale": jnp.asarray(math.log(1 / 0.07), jnp.float32),
        }

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        def mapped(tower: str) -> Any:
            x = outputs[f"{tower}_tokens"]
            return MLPHead(self.features, depth=1, dtype=x.dtype).apply(
                {"params": params[tower]}, x
            )

        patches, texts = mapped("image"), mapped("text")
        weights = losses.group_weights(texts, patches)
        groups = jnp.einsum("bqp,bpd->bqd", weights, patches)
        scale = jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)
        return losses.group_sums(groups, texts, outputs["text_mask"], scale)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        clip, metrics, state = super().loss(params, state, outputs, ctx)
        local = jnp.sum(outputs["nll"]) / jnp.maximum(jnp.sum(outputs["tokens"]), 1.0)
        metrics |= {"clip_loss": clip, "local_loss": local}
        metrics["local_logit_scale"] = jnp.exp(params["logit_scale"])
        return self.contrastive * clip + self.local_weight * local, metrics, state
