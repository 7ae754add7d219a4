"""Contrast of images with their texts: CLIP's softmax or SigLIP's sigmoid loss."""

from __future__ import annotations

import dataclasses

import jax

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """One of :mod:`jaxclip.losses` on the pair ``image``, ``text``.

    Options are those of the loss; one that is None is left to its default.

    Attributes:
      kind: ``"softmax"`` (Radford et al. 2021, arXiv:2103.00020) or ``"sigmoid"`` (Zhai et al.
        2023, arXiv:2303.15343).
      implementation: ``"plain"`` or ``"blockwise"`` (never holds the matrix of logits).
      label_smoothing: share of the target spread evenly, softmax only.
      precision: of the matrix products.
      tile_size: of the blockwise implementation.
    """

    kind: str = "softmax"
    implementation: str | None = None
    label_smoothing: float | None = None
    precision: str | None = None
    tile_size: int | None = None

    def __post_init__(self) -> None:
        self._loss()

    def _loss(self) -> losses.Loss:
        given = dataclasses.asdict(self)
        options = {key: given[key] for key in _OPTIONS if given[key] is not None}
        return losses.from_config({"name": self.kind, **options})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = self._loss()(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            logit_bias=ctx.logit_bias,
            mesh=ctx.mesh,
        )
        return loss, metrics, state


_OPTIONS = ("implementation", "label_smoothing", "precision", "tile_size")
