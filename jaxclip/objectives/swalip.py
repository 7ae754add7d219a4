"""SwALIP: clip-rocket, and soft matches of other views as targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.objectives import _rocket
from jaxclip.objectives._base import Context, Metrics, Outputs, Params
from jaxclip.objectives._checks import check_count, check_number


@dataclasses.dataclass(frozen=True)
class SwALIP(_rocket.Rocket):
    """Fini et al. 2023 (arXiv:2305.08675), after SwAV (Caron et al. 2020, arXiv:2006.09882).

    The loss of :class:`jaxclip.objectives.clip_rocket.ClipRocket` without smoothing plus
    swap_weight times the mean, over strong images a and strong texts b, of the cross-entropy of
    s cos(a, b) against the transport plan (:func:`sinkhorn`) of cos(1 - a, 1 - b), without a
    gradient, over rows and columns. What are prototypes in SwAV are the other modality's batch. It
    holds matrices of the global batch.

    Other options are those of :class:`jaxclip.objectives._rocket.Rocket`.

    Attributes:
      label_smoothing: 0, as the targets are soft.
      swap_weight: of the added part.
      epsilon: temperature of the transport plan.
      iterations: of Sinkhorn's algorithm.
    """

    label_smoothing: float = 0.0
    swap_weight: float = 0.2
    epsilon: float = 0.05
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_smoothing:
            raise ValueError(
                f"swalip.label_smoothing={self.label_smoothing}; its targets are soft: use 0"
            )
        check_number("swalip.swap_weight", self.swap_weight)
        check_number("swalip.epsilon", self.epsilon, positive=True)
        check_count("swalip.iterations", self.iterations)

    def relative(
        self, params: Params, outputs: Outputs, local: _rocket.Local, ctx: Context
    ) -> tuple[Any, Metrics]:
        del params, outputs, ctx
        cosine = {
            (a, b): jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
            for a, images in enumerate(local.images)
            for b, texts in enumerate(local.texts)
        }
        terms = []
        for (a, b), own in cosine.items():
            target = jax.lax.stop_gradient(
                sinkhorn(cosine[1 - a, 1 - b], self.epsilon, self.iterations)
            )
            logits = jnp.exp(local.logit_scale) * own
            for axis in (0, 1):
                log_probability = jax.nn.log_softmax(logits, axis=axis)
                terms.append(-jnp.sum(target * log_probability) / len(logits))
        swap = jnp.mean(jnp.stack(terms))
        return self.swap_weight * swap, {"swap": swap}


def sinkhorn(scores: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """A matching in which each row, and about each column, has weight 1.

    Args:
      scores: float32[B, B].
      epsilon: temperature: exp(scores / epsilon) is scaled by columns and rows in turn.
      iterations: how often.

    Returns:
      float32[B, B], rows sum to 1.
    """
    plan = scores / epsilon
    for _ in range(iterations):
        plan -= jax.nn.logsumexp(plan, axis=0, keepdims=True)
        plan -= jax.nn.logsumexp(plan, axis=1, keepdims=True)
    return jnp.exp(plan)
