"""CLIPPINGS: one vector of picture and text together, near those of the same thing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number


@dataclasses.dataclass(frozen=True)
class CLIPPINGS(Objective):
    """Arora et al. 2023, linking representations (arXiv:2304.03464): record linkage.

    z = unit(image_share I + (1 - image_share) T), and the supervised contrast of Khosla et al. 2020
    (arXiv:2004.11362) by label: for each row with another one of its label in the batch,
    lse_{j≠i}(z_i z_j / temperature) - mean over those of z_i z_j / temperature. Rows without one do
    not count as rows, but are wrong answers for others. A label of -1 is that of no other row.

    Batches want several rows of each class (``config.data.examples_per_class = 3``). The paper adds
    classes that are near by the vectors of the moment, which is not done here. It trains on plain
    pairs with CLIP's loss first (5e-6), then with this one down to 5e-9, AdamW, weight decay 1e-3.

    Attributes:
      image_share: of the image in z; 1 for the image alone (the code's parser: 0.3).
      temperature: of the contrast.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    image_share: float = 0.5
    temperature: float = 0.1
    implementation: str = "plain"

    def __post_init__(self) -> None:
        check_number("clippings.image_share", self.image_share, high=1.0)
        check_number("clippings.temperature", self.temperature, positive=True)
        check_choice("clippings.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "label"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"label": field_lib.Label()}

    def pooled(self, images: jax.Array, texts: jax.Array) -> jax.Array:
        """float32[B, D] of unit length, what records are linked by: of unit rows [B, D]."""
        return unit(self.image_share * images + (1.0 - self.image_share) * texts)

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        z, size = self.pooled(outputs["image"], outputs["text"]), len(outputs["label"])
        place = jnp.arange(size)
        labels = jnp.where(outputs["label"] < 0, -1 - place, outputs["label"])
        _, group = jnp.unique(labels, size=size, return_inverse=True)
        group = group.reshape(size)
        sums = jax.ops.segment_sum(z, group, num_segments=size)[group]
        others = jax.ops.segment_sum(jnp.ones(size), group, num_segments=size)[group] - 1.0
        scale = 1.0 / self.temperature
        positive = scale * jnp.sum(z * (sums - z), axis=-1) / jnp.maximum(others, 1.0)
        lse, _ = losses.off_diagonal_logsumexp(
            z, z, scale, implementation=self.implementation, mesh=ctx.mesh
        )
        anchors = others > 0
        count = jnp.sum(anchors)
        loss = jnp.sum(jnp.where(anchors, lse - positive, 0.0)) / jnp.maximum(count, 1)
        return loss, {"anchors": count / size}, state
