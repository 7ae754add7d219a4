"""SiamLIP: clip-rocket, and prediction of the other modality's projection."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip.objectives._base import Context, Outputs
from jaxclip.objectives._rocket_predictors import Predictors


@dataclasses.dataclass(frozen=True)
class SiamLIP(Predictors):
    """Fini et al. 2023 (arXiv:2305.08675), after SimSiam (Chen & He 2020, arXiv:2011.10566).

    The loss of :class:`jaxclip.objectives.clip_rocket.ClipRocket` plus the mean of 2 - 2 cos(p, v)
    over both directions of the weak and the four strong pairs; v is the other modality's projection
    by the model itself, without a gradient.

    Options are those of :class:`jaxclip.objectives._rocket_predictors.Predictors`.
    """

    def targets(
        self, projected: dict[str, jax.Array], outputs: Outputs, ctx: Context
    ) -> dict[str, jax.Array]:
        del outputs, ctx
        return projected
