"""FLIP: contrast of images of which a random part of the patches runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxclip.models.dropout import random_patches
from jaxclip.objectives._base import Context, Outputs
from jaxclip.objectives._checks import check_number
from jaxclip.objectives.contrastive import Contrastive


@dataclasses.dataclass(frozen=True)
class FLIP(Contrastive):
    """Li et al. 2023 (arXiv:2212.00794): the image tower sees floor(N (1 - mask_ratio)) patches.

    They are drawn anew for each row and step, after positions are added, and in training alone:
    evaluation sees all. A step costs about as much less as patches are left out. The paper ends
    with a short phase without masks: a second run from this one's weights
    (``config.init_from``) with ``mask_ratio=0``, which is the plain loss to the bit. Its own
    numbers: learning rate 4e-6 * B / 256 at B = 65,536, then 4e-8 * B / 256 for the unmasked phase
    of a hundredth of the pictures.

    The other options are those of :class:`Contrastive`.

    Attributes:
      mask_ratio: share of the patches that do not run; 0.5 in the paper, 0.75 for speed.
    """

    mask_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("flip.mask_ratio", self.mask_ratio, high=0.99)

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        if view != "image" or not self.mask_ratio:
            return {}
        num_patches = ctx.sizes.image.grid**2
        return {"keep": random_patches(ctx.row_keys(), num_patches, self.mask_ratio)}
