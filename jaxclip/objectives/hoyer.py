"""CLIP with Hoyer's measure of the MLPs' activations as a penalty, which makes them sparse."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number
from jaxclip.objectives._clip import clip_part

# A block whose squares sum to less counts as silent.
_SILENT = 1e-12


@dataclasses.dataclass(frozen=True)
class Hoyer(Objective):
    """Datta et al., 2022 (arXiv:2212.10170), without its spiking network: CLIP + penalty · H.

    H is the sum over the blocks of both towers of (Σ x)² / Σ x², with x = clip(a, 0, 1) of the
    batch's activations a behind the activation function of a block's MLP, padding too. It is near
    the number of units that are on, so that it grows with batch, tokens and width: hence the small
    weight. Its gradient pulls down what is below the threshold Σ x² / Σ x, and up what is above.
    Blocks with experts and convolutional towers have no part in it.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a softmax term of its own is listed.
      penalty: weight of H; 1e-9 to 1e-8 in the paper.
      implementation: ``"plain"`` or ``"blockwise"`` (never holds the matrix of logits).
    """

    contrastive: float = 1.0
    penalty: float = 1e-8
    implementation: str = "plain"

    # Of a small model the default's gradient would be lost beside CLIP's.
    small: ClassVar[Mapping[str, Any]] = {"penalty": 1e-4}

    def __post_init__(self) -> None:
        for name in ("contrastive", "penalty"):
            check_number(f"hoyer.{name}", getattr(self, name))
        check_choice("hoyer.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "image_activation_sums", "text_activation_sums"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        towers = [jnp.sum(outputs[f"{name}_activation_sums"], axis=0) for name in ("image", "text")]
        ratio, threshold = ratios(jnp.concatenate(towers))
        total = jnp.sum(ratio)
        loss, metrics = clip_part(
            self.contrastive,
            outputs["image"],
            outputs["text"],
            ctx,
            implementation=self.implementation,
        )
        mean = jnp.sum(threshold) / max(1, threshold.shape[0])
        metrics |= {"hoyer": total, "hoyer_threshold": mean}
        return loss + self.penalty * total, metrics, state


def ratios(sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Σ x)² / Σ x² and the threshold Σ x² / Σ x of blocks; 0 where nothing is on.

    Args:
      sums: float32[blocks, 2], Σ x and Σ x² of x at least 0.

    Returns:
      ``(float32[blocks], float32[blocks])``; the threshold has no gradient.
    """
    first, second = sums[:, 0], sums[:, 1]
    on = second > _SILENT
    first, second = (jnp.where(on, each, 1.0) for each in (first, second))
    ratio = first * (first / second)
    threshold = jax.lax.stop_gradient(second / first)
    return jnp.where(on, ratio, 0.0), jnp.where(on, threshold, 0.0)
