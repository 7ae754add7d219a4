"""MobileCLIP: distillation from the stored embeddings of an ensemble of teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, as_integers, check_choice, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class MobileCLIP(Objective):
    """Vasu et al. 2024 (arXiv:2311.17049): multi-modal reinforced training.

    A teacher's vector is the concatenation of those of the ensemble. The target of a row is
    P = mean_t softmax(s_t I_t T_tᵀ), averaged after the softmax, of a column likewise; the loss is
    contrastive · CLIP + distill · (cross-entropy of rows + of columns) / 2, the student's scale is
    learned. With a synthetic caption beside the true one it is the sum of both.

    Theirs is ``teacher.kind="reinforced"``: the picture is an augmentation that was embedded, and
    vectors are of the captions that are drawn (``captions="random"``). With ``"stored"`` a vector
    is of one caption: the record's first one, and the first one with the tag ``synthetic``, whose
    vector the record keeps under ``teacher.text_key`` + ``_texts1``. A teacher that runs along
    (``"frozen"``) sees the crop and the caption of the step.

    Attributes:
      sizes: length of each teacher's part.
      scales: s_t, one for each (v2: 70 and 60); None for the teacher's own, which stored embeddings
        do not have.
      contrastive: weight of CLIP (theirs: 0 at 12 million pairs, 0.25 at a billion).
      distill: weight of the distillation (1, 0.75).
      synthetic: tag of a second caption; empty for none.
      captions: which of a record's captions: ``"first"``, or ``"random"``, with a frozen or a
        reinforced teacher.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    sizes: Sequence[int] = (768, 768)
    scales: Sequence[float | None] = (100.0, 100.0)
    contrastive: float = 0.0
    distill: float = 1.0
    synthetic: str = ""
    captions: str = "first"
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {
        "sizes": (10, 6),
        "scales": (10.0, 5.0),
        "contrastive": 0.25,
        "distill": 0.75,
        "synthetic": "synthetic",
    }

    def __post_init__(self) -> None:
        sizes = as_integers("mobileclip.sizes", self.sizes)
        if not sizes or len(self.scales) != len(sizes):
            raise ValueError(
                f"mobileclip.scales={self.scales!r} must be one for each of sizes={self.sizes!r}"
            )
        for scale in self.scales:
            if scale is not None:
                check_number("mobileclip.scales", scale, positive=True)
        check_number("mobileclip.contrastive", self.contrastive)
        check_number("mobileclip.distill", self.distill)
        check_choice("mobileclip.captions", self.captions, ("first", "random"))
        check_choice("mobileclip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def _texts(self) -> tuple[str, ...]:
        return ("text", "texts1/text") if self.synthetic else ("text",)

    @property
    def needs(self) -> frozenset[str]:
        student = {"image", *self._texts}
        return frozenset(student | {f"teacher/{name}" for name in student})

    @property
    def fields(self) -> field_lib.BatchSpec:
        first = field_lib.Captions(policy=self.captions)
        second = dataclasses.replace(first, source=self.synthetic)
        return dict(zip(self._texts, (first, second), strict=False))

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if teacher is not None:
            self._check_size(teacher.embed_dim)
            return
        if None in self.scales:
            raise ValueError(
                f"mobileclip.scales={self.scales!r}: None is the teacher's own scale, but stored "
                "embeddings have none; set it to a number, such as 100"
            )

    def _check_size(self, size: int) -> None:
        if size != sum(self.sizes):
            raise ValueError(
                f"mobileclip.sizes={self.sizes!r} sum to {sum(self.sizes)}, but the teacher's "
                f"vectors have {size} numbers (teacher.size)"
            )

    def _teachers(
        self, images: jax.Array, texts: jax.Array, own_scale: jax.Array | None
    ) -> list[losses.Teacher]:
        """The ensemble, of its concatenated vectors."""
        self._check_size(images.shape[-1])
        teachers, start = [], 0
        for size, scale in zip(self.sizes, self.scales, strict=True):
            part = slice(start, start := start + size)
            factor: Any = scale
            if scale is None:
                assert own_scale is not None  # see check
                factor = jnp.exp(own_scale)
            teachers.append(losses.Teacher(unit(images[:, part]), unit(texts[:, part]), factor))
        return teachers

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, total = outputs["image"], jnp.zeros(())
        metrics: Metrics = {}
        for name in self._texts:
            teachers = self._teachers(
                outputs["teacher/image"], outputs[f"teacher/{name}"], ctx.teacher_logit_scale
            )
            how = self.implementation
            scale = jnp.exp(ctx.logit_scale)
            distilled = losses.soft_contrast(
                images, outputs[name], scale, teachers, implementation=how, mesh=ctx.mesh
            )
            distill = jnp.mean(distilled.rows + distilled.columns) / 2
            clip, own = clip_part(self.contrastive, images, outputs[name], ctx, implementation=how)
            total += clip + self.distill * distill
            own = own | {"distill": distill}
            metrics |= own if name == "text" else {f"synthetic_{k}": v for k, v in own.items()}
        return total, metrics, state
