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
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part
from jaxclip.objectives._token_maps import init_maps, mapped_tokens

_MAX_LOGIT_SCALE = math.log(100.0)


@dataclasses.dataclass(frozen=True)
class SPARC(Objective):
    """Bica et al. 2024 (arXiv:2401.09865): CLIP / 2 + words and their patches.

    Linear maps bring patches and words to one space. Each word gets a group of patches
    (:func:`jaxclip.losses.group_weights`). By it the word is told from the other words of its
    caption, and the group from theirs by the word, under a learned scale: no other pair is needed.
    The loss is the mean over all real words of the global batch. Words that occur twice are false
    negatives.

    The weights are as remembered from the paper, which has no code. Its embeddings are means of the
    mapped tokens, where here they are the towers' own: give them ``pool="mean"`` to be like it.

    Attributes:
      contrastive: weight of CLIP's loss.
      local_weight: of words and groups.
      features: of the space.
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 0.5
    local_weight: float = 1.0
    features: int = 512
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"features": 8}

    def __post_init__(self) -> None:
        check_number("sparc.contrastive", self.contrastive)
        check_choice("sparc.implementation", self.implementation, IMPLEMENTATIONS)
        check_number("sparc.local_weight", self.local_weight)
        check_count("sparc.features", self.features)

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
        patches, texts = mapped_tokens(params, outputs, self.features, unit=False)
        weights = losses.group_weights(texts, patches)
        groups = jnp.einsum("bqp,bpd->bqd", weights, patches)
        scale = jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)
        return losses.group_sums(groups, texts, outputs["text_mask"], scale)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        local = jnp.sum(outputs["nll"]) / jnp.maximum(jnp.sum(outputs["tokens"]), 1.0)
        metrics |= {"local": local, "local_logit_scale": jnp.exp(params["logit_scale"])}
        return loss + self.local_weight * local, metrics, state
