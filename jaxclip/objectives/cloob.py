"""CLOOB: Hopfield retrieval, then a contrast without the pair in the denominator."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class CLOOB(Objective):
    """Fürst et al. 2022 (arXiv:2110.11316): modern Hopfield networks with InfoLOOB.

    H(q, X) = unit(softmax(beta q Xᵀ) X) replaces an embedding by an average of the batch. With
    loob(a, b) = 1/s · mean_i (lse_{j≠i} k_ij - k_ii), k = s a bᵀ, the loss is
    loob(H(I, I), H(T, I)) + loob(H(T, T), H(I, T)): a sum, and below zero once pairs are near.
    The model's ``logit_scale`` has no part in it, as the factor 1/s would reward a small one.

    Defaults are those of the CC3M recipe (also: RN50, batch 512, learning rate 1e-3).

    Attributes:
      beta: sharpness of the retrieval.
      scale: s, fixed.
      hopfield: without it the loss is 2/s times that of ``dcl`` at scale s.
      implementation: ``"plain"`` or ``"blockwise"``, of the retrieval, too.
    """

    beta: float = 8.0
    scale: float = 30.0
    hopfield: bool = True
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("cloob.beta", self.beta, positive=True)
        check_number("cloob.scale", self.scale, positive=True)
        check_choice("cloob.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        how: Any = {"implementation": self.implementation, "mesh": ctx.mesh}

        def retrieve(queries: jax.Array, stored: jax.Array) -> jax.Array:
            if not self.hopfield:
                return queries
            return unit(losses.retrieve(queries, stored, self.beta, **how))

        def loob(a: jax.Array, b: jax.Array) -> jax.Array:
            others, _ = losses.off_diagonal_logsumexp(a, b, self.scale, **how)
            return jnp.mean(others / self.scale - jnp.sum(a * b, axis=-1))

        by_images = loob(retrieve(images, images), retrieve(texts, images))
        by_texts = loob(retrieve(texts, texts), retrieve(images, texts))
        metrics = {"from_images": by_images, "from_texts": by_texts}
        return by_images + by_texts, metrics, state
