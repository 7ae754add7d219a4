"""EVA: a masked image tower tells a smaller teacher's features, before it is trained with texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, unit
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _masked_patches
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number, check_square_grid

_VIEW = "masked/image"


@dataclasses.dataclass(frozen=True)
class EVA(Objective):
    """Fang et al. 2022 (arXiv:2211.07636), the first step of EVA-CLIP-18B's weak-to-strong recipe
    (Sun et al. 2024, arXiv:2402.04252): a large tower starts from what a smaller CLIP knows.

    A share of the patches is replaced by a mask token. A linear map of the student's tokens there
    is to point where the teacher's tokens of the whole picture point: the mean of
    1 - cos(map(token), teacher token). The teacher runs along (``config.teacher.kind = "frozen"``)
    and has the same grid of patches. The second step is ``contrastive`` from these weights
    (``init_from``), the text tower from the teacher's. The masked picture is a view of its own, so
    that other terms may see it whole.

    EVA masks blocks of 40% of the patches; here they are drawn one by one. EVA-CLIP-18B's rules
    for its towers are ``model.image.norm = "rms"``, ``norm_place = "post"`` (18B), ``qkv_bias =
    "none"``; its contrastive step has LAMB, 4e-4 for the image tower and 4e-5 for the text tower,
    layer decay 0.85 and 0.75, weight decay 0.05, clip 5, warm-up 2000.

    Attributes:
      mask_ratio: share of the patches that are replaced.
      teacher_width: channels of the teacher's tokens; 0 for as many as the model's.
    """

    mask_ratio: float = 0.4
    teacher_width: int = 0

    small: ClassVar[Mapping[str, Any]] = {"mask_ratio": 0.5}

    def __post_init__(self) -> None:
        check_number("eva.mask_ratio", self.mask_ratio, high=0.99, positive=True)
        check_count("eva.teacher_width", self.teacher_width, 0)

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({f"{_VIEW}_tokens", f"teacher/{_VIEW}_tokens"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {_VIEW: field_lib.View()}

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        check_square_grid("eva", sizes)
        if teacher is None:
            raise ValueError(
                "eva tells a teacher's tokens, which stored embeddings do not have; set "
                "teacher.kind='frozen'"
            )
        ours, theirs = (getattr(each.image, "grid", None) for each in (sizes, teacher))
        if ours is None or ours != theirs:
            raise ValueError(
                f"eva: the model has {ours} patches along a side, the teacher {theirs}; use one "
                "grid for both (model.image.image_size, patch_size)"
            )
        if (self.teacher_width or sizes.token_width) != teacher.token_width:
            raise ValueError(
                f"eva: the teacher's tokens have {teacher.token_width} channels; set "
                f"eva.teacher_width={teacher.token_width}"
            )

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        size, x = self.teacher_width or sizes.token_width, jnp.zeros((1, sizes.token_width))
        return {
            "mask_token": 0.02 * jax.random.normal(first, (sizes.image.width,)),
            "head": MLPHead(size, depth=1).init(second, x)["params"],
        }

    def _places(self, ctx: Context) -> jax.Array:
        """int32[B, M], the patches that are replaced."""
        return _masked_patches.places(ctx, self.mask_ratio)

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        if view != _VIEW:
            return {}
        return {"insert": _masked_patches.replaced(self._places(ctx), ctx.own["mask_token"])}

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        at = self._places(ctx)[:, :, None]
        student, teacher = (
            jnp.take_along_axis(outputs[f"{who}{_VIEW}_tokens"], at, axis=1)
            for who in ("", "teacher/")
        )
        head = MLPHead(teacher.shape[-1], depth=1, unit=True, dtype=student.dtype)
        told: Any = head.apply({"params": params["head"]}, student)
        target = unit(jax.lax.stop_gradient(teacher))
        return {"distance": 1.0 - jnp.mean(jnp.sum(told * target, axis=-1), axis=1)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        return jnp.mean(outputs["distance"]), {}, state
