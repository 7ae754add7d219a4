"""Alpha-CLIP: a fourth channel says which region of the picture the text is about."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number


@dataclasses.dataclass(frozen=True)
class AlphaCLIP(Objective):
    """Sun et al. 2024 (arXiv:2312.03818): CLIP's loss of regions and their phrases.

    The alpha channel (``config.model.image.alpha = True``) is 1 inside of the record's boxes, which
    follow the image ops, and 0 elsewhere; the caption is the phrase of the region. A row whose
    record has no box, or has lost it to a crop, and a random share of the others, is 1 everywhere:
    then the caption is about the whole picture. The channel's weights are zero at the start, so
    that nothing changes until they are trained.

    The paper trains the image tower alone: the channel's kernel at 4e-5, its other weights at a
    hundredth of that, text tower and temperature (ln 100) frozen: ``configs/methods.py:alpha_clip``
    has this as ``optim.groups``. Its masks are those of objects; here they are boxes. Its share of
    whole pictures, 0.1, is recalled (the code's default is 0).

    Attributes:
      whole: share of the rows that are whole pictures whatever their boxes.
      count: boxes of a record that count together.
      label_smoothing: share of the target spread evenly.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    whole: float = 0.1
    count: int = 1
    label_smoothing: float = 0.1
    implementation: str = "plain"

    small_model: ClassVar[Mapping[str, Any]] = {"image": {"alpha": True}}

    def __post_init__(self) -> None:
        check_number("alpha_clip.whole", self.whole, high=1.0)
        check_count("alpha_clip.count", self.count)
        check_number("alpha_clip.label_smoothing", self.label_smoothing, high=0.99)
        check_choice("alpha_clip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "boxes"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {"boxes": field_lib.Boxes(self.count)}

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if not getattr(sizes.image, "alpha", False):
            raise ValueError(
                "alpha_clip needs an image tower with an alpha channel; set model.image.alpha=True"
            )

    def _has_region(self, boxes: jax.Array, ctx: Context) -> jax.Array:
        """bool[B]: rows with a box that are not drawn to be whole."""
        drawn = jax.vmap(lambda key: jax.random.bernoulli(key, self.whole))(ctx.row_keys())
        return jnp.any(boxes[..., 2:] > boxes[..., :2], axis=(1, 2)) & ~drawn

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        if view != "image":
            return {}
        boxes, side = batch["boxes"], batch["image"].shape[1]
        alpha = box_mask(boxes, side)
        region = self._has_region(boxes, ctx)[:, None, None]
        return {"alpha": jnp.where(region, alpha, 1.0)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = losses.infonce(
            outputs["image"],
            outputs["text"],
            logit_scale=ctx.logit_scale,
            label_smoothing=self.label_smoothing,
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        regions = jnp.mean(self._has_region(outputs["boxes"], ctx), dtype=jnp.float32)
        return loss, metrics | {"regions": regions}, state


def box_mask(boxes: jax.Array, side: int) -> jax.Array:
    """Pixels inside any box: float32[B, side, side] of boxes float32[B, R, 4] in [0, 1].

    A pixel is inside where its centre is; an empty box has none.
    """
    centre = (jnp.arange(side) + 0.5) / side
    x0, y0, x1, y1 = (boxes[..., k, None] for k in range(4))
    columns = (x0 <= centre) & (centre < x1)  # [B, R, side]
    rows = (y0 <= centre) & (centre < y1)
    return jnp.any(rows[..., :, None] & columns[..., None, :], axis=1).astype(jnp.float32)
