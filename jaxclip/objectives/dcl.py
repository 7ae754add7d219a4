"""Decoupled contrastive learning: the positive pair leaves the denominator."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice


@dataclasses.dataclass(frozen=True)
class DCL(Objective):
    """Yeh et al. 2022 (arXiv:2110.06848, equation 3), across the two modalities.

    With logits x = exp(logit_scale) · I Tᵀ the loss of a row is lse_{j≠i} x_ij - x_ii, and the
    total the mean over rows and columns. CLIP's row loss is softplus of it. The paper's own
    negatives within a view are left out, as it has no second modality.

    It has no lower bound as the scale grows: keep ``logit_scale_max``, or freeze the scale.

    Attributes:
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_choice("dcl.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = losses.infonce(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            decoupled=True,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        return loss, metrics, state
