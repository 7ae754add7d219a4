"""Long texts beside short ones: primary components of the image answer the short text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number


@dataclasses.dataclass(frozen=True)
class LongCLIP(Objective):
    """Zhang et al. 2024, Long-CLIP (arXiv:2403.15378).

    NCE(U, long texts) + weight · NCE(PCA(U), short texts), where PCA(U) = mean + (U - mean) V Vᵀ
    with the first right singular vectors V of the centred images of the batch; its rows are not
    scaled to unit length. Here they are those of the global batch (the code's of each device), and
    V carries no gradient: where two singular values are equal that of the decomposition is
    infinite.

    The long text is the record's longest caption, the short one its first sentence.

    Attributes:
      components: of the batch, k. With k at least B - 1 the images are what they were.
      short_weight: of the second term; the paper's code has 1.
      label_smoothing: share of the target spread evenly.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    components: int = 32
    short_weight: float = 1.0
    label_smoothing: float = 0.1
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_count("long_clip.components", self.components)
        check_number("long_clip.short_weight", self.short_weight)
        check_number("long_clip.label_smoothing", self.label_smoothing, 0.0, 1.0)
        check_choice("long_clip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "short/text"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {
            "text": field_lib.Captions(policy="longest"),
            "short/text": field_lib.Captions(policy="longest", ops="first_sentence"),
        }

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images = outputs["image"].astype(jnp.float32)
        long, short = (
            losses.infonce(
                x,
                outputs[key],
                logit_scale=ctx.logit_scale,
                label_smoothing=self.label_smoothing,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )[0]
            for x, key in (
                (images, "text"),
                (primary_components(images, self.components), "short/text"),
            )
        )
        return long + self.short_weight * short, {"long": long, "short": short}, state


def primary_components(x: jax.Array, components: int) -> jax.Array:
    """Rows without what lies outside of the batch's first principal components.

    Args:
      x: float32[B, D].
      components: how many; at least B - 1 (or D) leave x as it is.

    Returns:
      float32[B, D], not of unit length. The directions are under ``stop_gradient``.
    """
    batch, size = x.shape
    if components >= min(batch - 1, size):
        return x
    mean = jnp.mean(x, axis=0, keepdims=True)
    centred = x - mean
    fixed = jax.lax.stop_gradient(centred)
    precise = jax.lax.Precision.HIGHEST
    # The smaller of the two Gram matrices has the same singular vectors, on one side.
    if batch <= size:
        _, left = jnp.linalg.eigh(jnp.matmul(fixed, fixed.T, precision=precise))
        kept = left[:, batch - components :]
        # Onto the span of the rows' own combinations: V Vᵀ = Xᵀ K diag(1 / σ²) Kᵀ X.
        mixed = jnp.matmul(fixed.T, kept, precision=precise)
        lengths = jnp.sum(mixed * mixed, axis=0)
        # What is rounding, as of equal images, is no direction.
        real = lengths > 1e-10 * jnp.max(lengths)
        directions = jnp.where(real, mixed * jax.lax.rsqrt(jnp.where(real, lengths, 1.0)), 0.0)
    else:
        _, right = jnp.linalg.eigh(jnp.matmul(fixed.T, fixed, precision=precise))
        directions = right[:, size - components :]
    directions = jax.lax.stop_gradient(directions)
    shares = jnp.matmul(centred, directions, precision=precise)
    return mean + jnp.matmul(shares, directions.T, precision=precise)
