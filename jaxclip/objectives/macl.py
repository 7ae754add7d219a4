"""Model-aware contrastive learning: the temperature follows the alignment of the pairs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class MACL(Objective):
    """Huang et al. 2023 (arXiv:2207.07874), for both directions between two modalities.

    With A the mean cosine of the pairs (no gradient), τ = temperature · (1 + alpha (A - start)) and
    P_i the softmax probability of pair i at τ, the loss of a row is -log P_i / sg(1 - P_i). The
    model's ``logit_scale`` has no part in it. The paper has one modality; the mean over both
    directions is ours, and the defaults are those of re-implementations.

    1 - P underflows for sure pairs. So the gradient is computed as that of the decoupled loss
    d_i = lse_{j≠i} x_ij - x_ii, which it equals exactly: -log P = softplus(d), 1 - P = sigmoid(d).

    Attributes:
      temperature: τ where A is ``start``.
      alpha: how far τ follows A.
      start: A at which τ is ``temperature``.
      reweight: divide by 1 - P; without it and with ``alpha=0`` it is CLIP at a fixed scale.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    temperature: float = 0.1
    alpha: float = 0.5
    start: float = 0.0
    reweight: bool = True
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("macl.temperature", self.temperature, positive=True)
        check_number("macl.alpha", self.alpha)
        check_number("macl.start", self.start, -1.0, 1.0)
        check_choice("macl.implementation", self.implementation, IMPLEMENTATIONS)
        if self.alpha * (1.0 + self.start) >= 1.0:
            raise ValueError(
                f"macl.alpha={self.alpha!r} with start={self.start!r} would make the temperature "
                f"of opposite pairs negative; use alpha below {1.0 / (1.0 + self.start):g}"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        cosines = jnp.sum(images * texts, axis=-1)
        alignment = jax.lax.stop_gradient(jnp.mean(cosines))
        temperature = self.temperature * (1.0 + self.alpha * (alignment - self.start))
        row, column = losses.off_diagonal_logsumexp(
            images, texts, 1.0 / temperature, implementation=self.implementation, mesh=ctx.mesh
        )
        each = [self._of_decoupled(others - cosines / temperature) for others in (row, column)]
        metrics = {"alignment": alignment, "temperature": temperature}
        return jnp.mean(jnp.stack(each)), metrics, state

    def _of_decoupled(self, d: jax.Array) -> jax.Array:
        if not self.reweight:
            return jax.nn.softplus(d)
        ratio = jax.nn.softplus(d) / jax.nn.sigmoid(jnp.maximum(d, -30.0))
        value = jnp.where(d < -15.0, 1.0, ratio)  # softplus(d) / sigmoid(d) -> 1
        return d + jax.lax.stop_gradient(value - d)
