"""Mod-X: train on new data and keep the similarities that the model had between others."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class ModX(Objective):
    """Ni et al. 2023 (arXiv:2305.07437): continual learning with off-diagonal information.

    CLIP + alpha / 2 · Σ_i KL(softmax(So_i) ‖ softmax(Sn_i)), and the same of the columns, with So
    and Sn the teacher's and the model's cosines in the batch, without a scale. Rows that the
    teacher does not match to their own pair are left out. The divergence is a sum over rows, so
    that what ``alpha`` means depends on the batch (theirs: 280).

    The teacher is the model before the new data, ``teacher.kind="frozen"``.

    Attributes:
      alpha: weight of the divergence.
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    alpha: float = 20.0
    contrastive: float = 1.0
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("mod_x.alpha", self.alpha)
        check_number("mod_x.contrastive", self.contrastive)
        check_choice("mod_x.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "teacher/image", "teacher/text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        how = self.implementation
        teacher = losses.Teacher(outputs["teacher/image"], outputs["teacher/text"])
        kept_up = losses.soft_contrast(
            images, texts, 1.0, [teacher], divergence=True, implementation=how, mesh=ctx.mesh
        )
        divergence, kept = jnp.zeros(()), jnp.zeros(())
        for each, sure in zip(kept_up[:2], kept_up[2:], strict=True):
            divergence += jnp.sum(jnp.where(sure, each, 0.0)) / 2
            kept += jnp.mean(sure, dtype=jnp.float32) / 2
        loss, metrics = clip_part(self.contrastive, images, texts, ctx, implementation=how)
        metrics |= {"divergence": divergence, "kept_rows": kept}
        return loss + self.alpha * divergence, metrics, state
