"""A pull of the softmax's normaliser towards one, which keeps output logits from drifting."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class ZLoss(Objective):
    """CLIP with z-loss (PaLM, Chowdhery et al., 2022, arXiv:2204.02311; Wortsman et al., 2023).

    CLIP + z (mean_i log² Z_i + mean_j log² Z_j) / 2, with Z_i the sum of exp of the logits of row i
    and Z_j of column j. In a trained CLIP log Z is near the scale times the cosine of a pair, 10 to
    30: the term pulls against the temperature, so begin with a small ``z``. With the sigmoid loss
    there is no Z.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a softmax term of its own is listed.
      z: weight of the squares.
      implementation: ``"plain"`` or ``"blockwise"`` (never holds the matrix of logits).
    """

    contrastive: float = 1.0
    z: float = 1e-5
    implementation: str = "plain"

    def __post_init__(self) -> None:
        for name in ("contrastive", "z"):
            check_number(f"z_loss.{name}", getattr(self, name))
        check_choice("z_loss.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        scale = jnp.exp(ctx.logit_scale)
        rows, columns = losses.off_diagonal_logsumexp(
            images, texts, scale, implementation=self.implementation, mesh=ctx.mesh
        )
        positive = scale * jnp.sum(images * texts, axis=-1)
        rows, columns = (jnp.logaddexp(part, positive) for part in (rows, columns))
        z = (jnp.mean(rows**2) + jnp.mean(columns**2)) / 2
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        metrics |= {"log_z": (jnp.mean(rows) + jnp.mean(columns)) / 2}
        return loss + self.z * z, metrics, state
