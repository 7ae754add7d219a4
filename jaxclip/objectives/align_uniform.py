"""CLIP with terms that align pairs and spread both modalities over the sphere."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class AlignUniform(Objective):
    """Fahim et al. 2024, "It's Not a Modality Gap" (arXiv:2405.18570).

    CLIP + align + uniform + cross_uniform, with
    align = mean_i |I_i - T_i|², uniform = (u(I) + u(T)) / 2 with
    u(X) = log mean_{i≠j} exp(-2 |X_i - X_j|²), cross_uniform = log mean_{i≠j} exp(-2 |I_i - T_j|²).
    The paper tunes trained towers with the temperature fixed at 0.01.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      align: weight of the alignment.
      uniform: weight of the uniformity within each modality.
      cross_uniform: weight of the uniformity between them.
      implementation: ``"plain"`` or ``"blockwise"`` (never holds a matrix of products).
    """

    contrastive: float = 1.0
    align: float = 1.0
    uniform: float = 1.0
    cross_uniform: float = 1.0
    implementation: str = "plain"

    def __post_init__(self) -> None:
        for name in ("contrastive", "align", "uniform", "cross_uniform"):
            check_number(f"align_uniform.{name}", getattr(self, name))
        check_choice("align_uniform.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        size = images.shape[0]

        def spread(a: jax.Array, b: jax.Array) -> jax.Array:
            # |a - b|² = 2 - 2 a·b for unit rows, so that the mean is a log-sum-exp of products.
            rows, _ = losses.off_diagonal_logsumexp(
                a, b, 4.0, implementation=self.implementation, mesh=ctx.mesh
            )
            return jax.nn.logsumexp(rows) - 4.0 - jnp.log(float(size * (size - 1)))

        parts = {
            "align": jnp.mean(jnp.sum((images - texts) ** 2, axis=-1)),
            "uniform": (spread(images, images) + spread(texts, texts)) / 2,
            "cross_uniform": spread(images, texts),
        }
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        for name, value in parts.items():
            loss += getattr(self, name) * value
        return loss, metrics | parts, state
