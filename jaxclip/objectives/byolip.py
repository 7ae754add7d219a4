"""BYOLIP: clip-rocket, and prediction of what a moving average of the run makes of the views."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip.objectives._base import Context, Outputs
from jaxclip.objectives._checks import check_follows
from jaxclip.objectives._rocket import IMAGES, TEXTS
from jaxclip.objectives._rocket_predictors import Predictors


@dataclasses.dataclass(frozen=True)
class BYOLIP(Predictors):
    """Fini et al. 2023 (arXiv:2305.08675), after BYOL (Grill et al. 2020, arXiv:2006.07733).

    The loss of :class:`jaxclip.objectives.clip_rocket.ClipRocket` plus the mean of 2 - 2 cos(p, v)
    over both directions of the weak and the four strong pairs. v is a projection of the other
    modality by a teacher, towers and projector, that follows the run:
    ``config.teacher = {"kind": "ema", "decay": 0.99}``.

    Options are those of :class:`jaxclip.objectives._rocket_predictors.Predictors`.
    """

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"teacher/{view}_pooled" for view in IMAGES + TEXTS}

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        check_follows("byolip", teacher)

    def targets(
        self, projected: dict[str, jax.Array], outputs: Outputs, ctx: Context
    ) -> dict[str, jax.Array]:
        del projected
        return self.project(ctx.teacher_own, outputs, "teacher/")
