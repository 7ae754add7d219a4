"""CLIP-Refine: a short training that closes the gap between the modalities of a trained model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class ClipRefine(Objective):
    """Yamaguchi et al. 2025, post-pre-training for modality alignment (arXiv:2504.12717).

    RaFA draws z ~ N(0, 1) [B, D], the same for both sides of a pair, and pulls the raw embeddings
    to it: mean (I - z)² + mean (T - z)². HyCD is the mean over rows and directions of
    KL(q ‖ softmax(I Tᵀ)) with q = alpha · identity + (1 - alpha) · softmax of the teacher's; the
    products are of raw embeddings, at temperature 1. There is no contrastive term beside it.

    The teacher is the initial model, ``teacher.kind="frozen"``. The paper's RaFA is a sum over D
    halved; this is its code's mean over elements. Its recipe: AdamW, learning rate 1e-6, one epoch.

    Attributes:
      alpha: share of the pair itself in the target.
      rafa: weight of the alignment to random features.
      hycd: weight of the distillation.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    alpha: float = 0.5
    rafa: float = 1.0
    hycd: float = 1.0
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("clip_refine.alpha", self.alpha, 0.0, 1.0)
        check_number("clip_refine.rafa", self.rafa)
        check_number("clip_refine.hycd", self.hycd)
        check_choice("clip_refine.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image_raw", "text_raw", "teacher/image_raw", "teacher/text_raw"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = (outputs[key].astype(jnp.float32) for key in ("image_raw", "text_raw"))
        draw = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
        noise = draw(ctx.row_keys())
        rafa = jnp.mean((images - noise) ** 2) + jnp.mean((texts - noise) ** 2)

        distilled = losses.soft_contrast(
            images,
            texts,
            1.0,
            [losses.Teacher(outputs["teacher/image_raw"], outputs["teacher/text_raw"])],
            own_share=self.alpha,
            divergence=True,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        hycd = jnp.mean(distilled.rows + distilled.columns) / 2
        metrics = {"rafa": rafa, "hycd": hycd}
        return self.rafa * rafa + self.hycd * hycd, metrics, state
