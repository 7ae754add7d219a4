"""SILC: small crops of a picture match what a moving average makes of the whole one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig
from jaxclip.objectives import _self_distill
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import (
    IMPLEMENTATIONS,
    check_choice,
    check_count,
    check_follows,
    check_number,
)
from jaxclip.objectives._clip import clip_part

LOCAL_OPS = (
    "random_resized_crop(0.05, 0.4)|color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8)|grayscale(0.2)"
    "|blur(2.0, 0.5)|flip"
)


@dataclasses.dataclass(frozen=True)
class SILC(Objective):
    """Naeem et al. 2023 (arXiv:2310.13355): CLIP + distill * self-distillation, as in DINO (Caron
    et al. 2021, arXiv:2104.14294); SigLIP 2 (arXiv:2502.14786) has it for its last fifth.

    A teacher that follows the run, head included (``config.teacher = {"kind": "ema", "decay":
    0.966}``), sees ``image``; the student sees ``num_local`` small crops. Pooled vectors go through
    a head to cosines z with K prototypes, and the loss is the mean over crops of
    CE(softmax((z_teacher - c) / teacher_temperature), softmax(z_student / student_temperature)),
    where c is the moving average of z_teacher. The decay stays where it is: with one that goes to 1
    the teacher would stop to follow the texts. SigLIP 2 has one global view and 8 local ones, as
    here; SILC has a second global view.

    All constants but the range of crops are recalled; there is no code to check them against.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      distill: weight of the self-distillation.
      num_local: small crops.
      local_size: their side, pixels; positions are interpolated. 0 for ``data.image_size``.
      local_ops: that make them.
      prototypes: K.
      width: of the head's hidden layers.
      features: of the head, before the prototypes.
      student_temperature: of the student.
      teacher_temperature: of the teacher (DINO: 0.04 to 0.07).
      centre_momentum: of c.
      implementation: of CLIP's loss, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 1.0
    distill: float = 1.0
    num_local: int = 8
    local_size: int = 96
    local_ops: str = LOCAL_OPS
    prototypes: int = 65_536
    width: int = 2048
    features: int = 256
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {
        **{"num_local": 2, "local_size": 8, "prototypes": 8, "width": 16, "features": 8},
        "teacher_temperature": 0.07,
    }

    def __post_init__(self) -> None:
        name = self.method()
        for each in ("contrastive", "distill"):
            check_number(f"{name}.{each}", getattr(self, each))
        for each in ("num_local", "prototypes", "width", "features"):
            check_count(f"{name}.{each}", getattr(self, each))
        check_count(f"{name}.local_size", self.local_size, 0)
        for each in ("student_temperature", "teacher_temperature"):
            check_number(f"{name}.{each}", getattr(self, each), positive=True)
        check_number(f"{name}.centre_momentum", self.centre_momentum, high=1.0)
        check_choice(f"{name}.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def teacher_view(self) -> str:
        """What the teacher sees."""
        return "image"

    @property
    def _local(self) -> list[str]:
        return [f"local{k}/image" for k in range(1, self.num_local + 1)]

    @property
    def needs(self) -> frozenset[str]:
        pooled = {f"{view}_pooled" for view in [f"teacher/{self.teacher_view}", *self._local]}
        return frozenset({"image", "text", *pooled})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return dict.fromkeys(self._local, field_lib.View(self.local_ops, self.local_size))

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        patch = getattr(sizes.image, "patch_size", 1)
        if self.local_size % patch:
            name = self.method()
            raise ValueError(
                f"{name}.local_size={self.local_size} is no multiple of model.image.patch_size="
                f"{patch}; use {max(1, round(self.local_size / patch)) * patch}"
            )

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        check_follows(self.method(), teacher)

    @property
    def _head(self) -> _self_distill.PrototypeHead:
        return _self_distill.PrototypeHead(self.prototypes, self.width, self.features)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        return {"head": self._head.init(rng, sizes.image.width)}

    def init_state(self, sizes: CLIPConfig) -> State:
        return {"centre": jnp.zeros(self.prototypes)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        distill, centre = self.local_to_global(params, state["centre"], outputs, ctx)
        metrics |= {"distill": distill, "centre_norm": jnp.linalg.norm(centre)}
        return loss + self.distill * distill, metrics, {**state, "centre": centre}

    def local_to_global(
        self, params: Params, centre: jax.Array, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of local crops to the teacher's view (DINO, arXiv:2104.14294).

        Args:
          params: of the term.
          centre: float32[K], what the teacher's scores are centred by.
          outputs: ``_pooled`` of the crops, and of the teacher's view.
          ctx: of the term.

        Returns:
          ``(float32[], float32[K])``: the mean over crops and rows, and the centre after it.
        """
        pooled = outputs[f"teacher/{self.teacher_view}_pooled"]
        teacher = self._head(ctx.teacher_own["head"], pooled)
        temperatures = (self.student_temperature, self.teacher_temperature)
        values: Any = sum(
            jnp.mean(
                _self_distill.distillation(
                    self._head(params["head"], outputs[f"{view}_pooled"]),
                    teacher,
                    centre,
                    *temperatures,
                )
            )
            for view in self._local
        )
        return values / self.num_local, _self_distill.moved(centre, teacher, self.centre_momentum)
