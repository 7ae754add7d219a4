"""Affinity mimicking: the student learns the teacher's distribution over the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class Affinity(Objective):
    """The loss of TinyCLIP (Wu et al. 2023, arXiv:2309.12314).

    alpha · A + (1 - alpha) · CLIP with A the mean over rows, columns and both directions of the
    cross-entropy of the student's softmax to the teacher's. The teacher may have another size of
    embedding. Weight inheritance and masks are no part of a loss.

    Attributes:
      alpha: share of the mimicking; the rest is CLIP's loss at the student's scale.
      scale: factor on the student's cosines (theirs: fixed at 50); None for the model's own.
      teacher_scale: factor on the teacher's cosines; None for its own, which stored embeddings do
        not have.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    alpha: float = 1.0
    scale: float | None = 50.0
    teacher_scale: float | None = 50.0
    implementation: str = "plain"

    # A teacher that is the model itself, as in tests, has no gradient at an equal scale.
    small: ClassVar[Mapping[str, Any]] = {"scale": None, "teacher_scale": 50.0}

    def __post_init__(self) -> None:
        method = self.method()
        check_number(f"{method}.alpha", self.alpha, 0.0, 1.0)
        check_choice(f"{method}.implementation", self.implementation, IMPLEMENTATIONS)
        for name in ("scale", "teacher_scale"):
            if getattr(self, name) is not None:
                check_number(f"{method}.{name}", getattr(self, name), positive=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "teacher/image", "teacher/text"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if teacher is None and self.teacher_scale is None:
            raise ValueError(
                f"{self.method()}.teacher_scale=None is the teacher's own scale, but stored "
                "embeddings have none; set it to a number, such as 50"
            )

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        log_scale = ctx.logit_scale if self.scale is None else jnp.log(jnp.float32(self.scale))
        if self.teacher_scale is not None:
            teacher_scale = jnp.float32(self.teacher_scale)
        else:
            assert ctx.teacher_logit_scale is not None  # see check
            teacher_scale = jnp.exp(ctx.teacher_logit_scale)
        teacher = losses.Teacher(outputs["teacher/image"], outputs["teacher/text"], teacher_scale)
        how = self.implementation
        mimicked = losses.soft_contrast(
            images, texts, jnp.exp(log_scale), [teacher], implementation=how, mesh=ctx.mesh
        )
        affinity = jnp.mean(mimicked.rows + mimicked.columns) / 2
        loss, metrics = clip_part(
            1.0 - self.alpha, images, texts, ctx, log_scale=log_scale, implementation=how
        )
        return loss + self.alpha * affinity, metrics | {"affinity": affinity}, state
