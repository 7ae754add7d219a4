"""DC-CLIP: the student's feature maps follow a teacher's, with captions of two languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._clip import clip_part_if_any
from jaxclip.objectives.sam_clip import smooth_l1

_TOWERS = ("image", "text")


@dataclasses.dataclass(frozen=True)
class DCCLIP(Objective):
    """Zhang et al. 2024, DC-CLIP (arXiv:2404.11249), its first stage; there is no code.

    image_weight * Smooth-L1(adapter(image tokens), the teacher's) + text_weight * the same of text
    tokens, a mean over real tokens and channels. An adapter is a linear map of each token (a 1x1
    convolution) to the teacher's width. The teacher runs along (``config.teacher.kind =
    "frozen"``), with the same grid of patches and the same tokenizer. The second stage is
    ``contrastive`` on pairs of both languages, from the first stage's weights (``init_from``).

    Attributes:
      image_weight: of the image tower's tokens.
      text_weight: of the text tower's.
      contrastive: weight of CLIP's loss beside it; the paper's first stage has none.
      shares: {language: share} of the captions; empty for the record's own.
      image_width: channels of the teacher's image tokens; 0 for the model's own.
      text_width: of its text tokens.
    """

    image_weight: float = 1.0
    text_weight: float = 1.0
    contrastive: float = 0.0
    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    image_width: int = 0
    text_width: int = 0

    small: ClassVar[Mapping[str, Any]] = {"contrastive": 0.5}

    def __post_init__(self) -> None:
        for name in ("image_weight", "text_weight", "contrastive"):
            check_number(f"dc_clip.{name}", getattr(self, name))
        if not isinstance(self.shares, Mapping):
            raise ValueError(f"dc_clip.shares={self.shares!r} must be {{language: share}}")
        for language, share in self.shares.items():
            check_number(f"dc_clip.shares[{language!r}]", share, positive=True)
        for name in ("image_width", "text_width"):
            check_count(f"dc_clip.{name}", getattr(self, name), 0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(_TOWERS if self.contrastive else ())

    @property
    def row_needs(self) -> frozenset[str]:
        tokens = {f"{who}{tower}_tokens" for who in ("", "teacher/") for tower in _TOWERS}
        return frozenset(tokens | {"text_mask"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        if not self.shares:
            return {}
        shares = tuple((str(tag), float(share)) for tag, share in sorted(self.shares.items()))
        return {"text": field_lib.Captions(shares=shares)}

    @property
    def whole_views(self) -> frozenset[str]:
        return frozenset({"image"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if teacher is None:
            raise ValueError(
                "dc_clip follows a teacher's tokens, which stored embeddings do not have; set "
                "teacher.kind='frozen'"
            )
        ours, theirs = (getattr(each.image, "grid", None) for each in (sizes, teacher))
        if ours != theirs:
            raise ValueError(
                f"dc_clip: the model has {ours} patches along a side, the teacher {theirs}; use "
                "one grid for both (model.image.image_size, patch_size)"
            )
        theirs = teacher.token_width, teacher.text.width
        if self.widths(sizes) != theirs:
            raise ValueError(
                f"dc_clip: the teacher's tokens have {theirs[0]} and {theirs[1]} channels; set "
                f"dc_clip.image_width={theirs[0]} and text_width={theirs[1]}"
            )

    def widths(self, sizes: CLIPConfig) -> tuple[int, int]:
        """Channels of the teacher's tokens, of images and of texts."""
        return self.image_width or sizes.token_width, self.text_width or sizes.text.width

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        ours = (sizes.token_width, sizes.text.width)
        return {
            tower: MLPHead(theirs, depth=1).init(key, jnp.zeros((1, width)))["params"]
            for tower, key, width, theirs in zip(
                _TOWERS, jax.random.split(rng), ours, self.widths(sizes), strict=True
            )
        }

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        results = {}
        for tower, width in zip(_TOWERS, self.widths(ctx.sizes), strict=True):
            tokens = outputs[f"{tower}_tokens"]
            target = outputs[f"teacher/{tower}_tokens"].astype(jnp.float32)
            head = MLPHead(width, depth=1, dtype=tokens.dtype)
            mapped: Any = head.apply({"params": params[tower]}, tokens)
            each = jnp.mean(smooth_l1(mapped - jax.lax.stop_gradient(target)), axis=-1)
            real = outputs["text_mask"] if tower == "text" else jnp.ones(each.shape, bool)
            results[f"{tower}_sum"] = jnp.sum(each, axis=1, where=real)
            results[f"{tower}_count"] = jnp.sum(real, axis=1, dtype=jnp.float32)
        return results

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part_if_any(self.contrastive, outputs, ctx)
        for tower, weight in zip(_TOWERS, (self.image_weight, self.text_weight), strict=True):
            value = jnp.sum(outputs[f"{tower}_sum"]) / jnp.sum(outputs[f"{tower}_count"])
            metrics[f"{tower}_distance"] = value
            loss += weight * value
        return loss, metrics, state
