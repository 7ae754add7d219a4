"""clip-rocket: the contrastive loss on a weak pair and on strongly augmented ones."""

from __future__ import annotations

import dataclasses

from jaxclip.objectives._rocket import Rocket


@dataclasses.dataclass(frozen=True)
class ClipRocket(Rocket):
    """Fini et al. 2023 (arXiv:2305.08675): (L_global + 2 L_local) / 3.

    L_global is CLIP's loss on the pair as it is. L_local is the mean of CLIP's losses, with label
    smoothing, of two strongly augmented images with two augmented texts, through heads of three
    layers with batch norm (over the global batch) and under a scale of their own, at first 1 / 0.1.
    Most of what non-contrastive relatives gain comes from these views.

    The paper: weak view ``random_resized_crop(0.5, 1.0)`` (``config.data.image_ops``), learning
    rate 3e-3 at 4096, weight decay 0.1 (0.5 on CC3M), betas 0.9 and 0.98, 32 epochs. Its code may
    add the two directions in place of averaging them: weight 2.

    Options are those of :class:`jaxclip.objectives._rocket.Rocket`.
    """
