"""Mammo-CLIP: two views of a picture and two texts, all against each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives import _views
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class MammoCLIP(Objective):
    """Ghosh et al. 2024 (arXiv:2405.12255): the mean of four CLIP losses + images + texts.

    The four are of two images with two texts, one logit scale for all. Images are two augmentations
    (theirs: two views of a study, or these), texts two captions of the record (theirs: two sections
    of a report, or back-translations): with one caption both are the same. Pictures of one study in
    a batch are false negatives. Theirs: AdamW 5e-5, weight decay 1e-4, a linear projection to 512.

    Attributes:
      images: weight of the contrast of both images.
      texts: weight of the contrast of both texts.
      image_ops: of the second image; empty for ``data.image_ops``, as the first.
      text_ops: of the second text.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    images: float = 1.0
    texts: float = 0.5
    image_ops: str = ""
    text_ops: str = ""
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("mammo_clip.images", self.images)
        check_number("mammo_clip.texts", self.texts)
        check_choice("mammo_clip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "view1/image", "text", "texts1/text"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _views.image_views(1, self.image_ops) | _views.text_views(1, self.text_ops)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        def contrast(first: str, second: str) -> tuple[jax.Array, Metrics]:
            return losses.infonce(
                outputs[first],
                outputs[second],
                logit_scale=ctx.logit_scale,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )

        images, texts = ("image", "view1/image"), ("text", "texts1/text")
        pairs = [contrast(image, text) for image in images for text in texts]
        metrics = pairs[0][1]
        clip: Any = sum(value for value, _ in pairs) / 4
        total = clip
        metrics |= {"clip": clip}
        for name, weight, both in (("images", self.images, images), ("texts", self.texts, texts)):
            if weight:
                value, _ = contrast(*both)
                total, metrics = total + weight * value, metrics | {name: value}
        return total, metrics, state
