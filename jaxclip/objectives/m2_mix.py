"""Geodesic multi-modal mixup: points between an image and its text as hard negatives."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class M2Mix(Objective):
    """Oh et al. 2023 (arXiv:2203.03897), its m²-Mix (m³: :mod:`jaxclip.objectives.m3_mix`).

    One λ ~ Beta(beta, beta) a step; M_j lies on the arc from text j (λ = 0) to image j (λ = 1).
    L = CE(rows of A) + CE(rows of C) with A_ii = C_ii = s I_i·T_i, A_ij = s I_i·M_j and
    C_ij = s T_i·M_j, a sum. The loss is CLIP + mix / (epoch + 1) · L. For tuning a trained model
    (theirs: learning rate 1e-5, batch 128, 9 epochs, ``mix`` out of 0.05, 0.01, 0.005, 0.001).

    Attributes:
      mix: weight of the mixed negatives.
      beta: of the distribution of λ (its script: 0.5).
      scale: factor on cosines of CLIP's part; None for the model's own.
      mix_scale: s.
      epoch_steps: steps of an epoch, for the decay of ``mix``; 0 for none.
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    mix: float = 0.01
    beta: float = 0.5
    scale: float | None = 100.0
    mix_scale: float = 1 / 0.07
    epoch_steps: int = 0
    contrastive: float = 1.0
    implementation: str = "plain"

    def __post_init__(self) -> None:
        name = self.method()
        check_number(f"{name}.mix", self.mix)
        check_number(f"{name}.beta", self.beta, positive=True)
        if self.scale is not None:
            check_number(f"{name}.scale", self.scale, positive=True)
        check_number(f"{name}.mix_scale", self.mix_scale, positive=True)
        check_count(f"{name}.epoch_steps", self.epoch_steps, low=0)
        check_number(f"{name}.contrastive", self.contrastive)
        check_choice(f"{name}.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        ratio = jax.random.beta(ctx.key, self.beta, self.beta)
        mixed = self.mixed_negatives(images, texts, ratio, ctx.mesh)
        clip, metrics = clip_part(
            self.contrastive,
            images,
            texts,
            ctx,
            log_scale=self.log_scale(ctx),
            implementation=self.implementation,
        )
        total = clip + self.mix * self.decay(ctx.step) * mixed
        return total, metrics | {"mixed": mixed, "ratio": ratio}, state

    def decay(self, step: jax.Array) -> jax.Array:
        """``1 / (epoch + 1)``, float32[], on what is mixed."""
        epoch = step // self.epoch_steps if self.epoch_steps else 0
        return jnp.float32(1.0) / (epoch + 1)

    def log_scale(self, ctx: Context) -> jax.Array:
        """Log of the factor on cosines of CLIP's part, float32[]."""
        return ctx.logit_scale if self.scale is None else jnp.log(jnp.float32(self.scale))

    def mixed_negatives(
        self,
        images: jax.Array,
        texts: jax.Array,
        ratio: jax.Array,
        mesh: jax.sharding.Mesh | None = None,
    ) -> jax.Array:
        """L, float32[], for λ = ``ratio``."""
        between = slerp(images, texts, ratio)
        own = self.mix_scale * jnp.sum(images * texts, axis=-1)
        total = jnp.zeros(())
        for rows in (images, texts):
            others, _ = losses.off_diagonal_logsumexp(
                rows, between, self.mix_scale, implementation=self.implementation, mesh=mesh
            )
            total += jnp.mean(jnp.logaddexp(others, own) - own)
        return total


def slerp(a: jax.Array, b: jax.Array, ratio: jax.Array) -> jax.Array:
    """[B, D]: the points at ``ratio`` of the way from unit rows b to unit rows a, along the sphere.

    Where the rows are closer than about 0.1 degrees, or opposite, the arc's sines vanish: there it
    is the straight line, which has finite gradients.
    """
    cosines = jnp.sum(a * b, axis=-1, keepdims=True)
    apart = jnp.abs(cosines) < 1.0 - 1e-6
    angle = jnp.arccos(jnp.where(apart, cosines, 0.0))
    arc = (jnp.sin(ratio * angle) * a + jnp.sin((1.0 - ratio) * angle) * b) / jnp.sin(angle)
    return jnp.where(apart, arc, ratio * a + (1.0 - ratio) * b)
