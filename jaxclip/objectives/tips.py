"""TIPS: SILC, masked patches that match the teacher's, and a second caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives import _masked_patches, _self_distill, silc
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number, check_square_grid

_VIEW = "global/image"
_SECOND = "texts1/text"


@dataclasses.dataclass(frozen=True)
class TIPS(silc.SILC):
    """Maninis et al. 2024 (arXiv:2410.16512): CLIP + distill * SILC's loss + masked * iBOT's (Zhou
    et al. 2021, arXiv:2111.07832).

    The teacher (``config.teacher.kind = "ema"``; TIPS: from 0.994) sees one large crop, ``global``.
    Of the same crop the student sees patches, ``mask_ratio`` of them replaced by a mask token, and
    matches there the teacher's distribution over prototypes of patches, by a second head and a
    centre of its own. With ``synthetic``, a tag of captions, the image has a second embedding, a
    linear map of its first register, that is contrasted with such a caption; CLIP's part is the
    mean of both.

    SigLIP 2 (arXiv:2502.14786) has this with ``distill=1``, ``masked=2.5`` and the term's weight
    0.25, 0.5, 1, 0.5 for B, L, So400m, g, in the last fifth of training (all recalled, as those of
    :class:`jaxclip.objectives.silc.SILC`; there is no trainer).

    Attributes (beside those of SILC):
      masked: weight of the masked patches.
      mask_ratio: share of the patches that are replaced; 0 for none.
      global_ops: of the large crop; empty for ``data.image_ops``.
      patch_prototypes: K of the patches.
      synthetic: tag of second captions (``model.image.num_registers`` must be 1 or more); empty for
        none.
    """

    masked: float = 2.0
    mask_ratio: float = 0.5
    global_ops: str = ""
    patch_prototypes: int = 65_536
    synthetic: str = ""

    small: ClassVar[Mapping[str, Any]] = {**silc.SILC.small, "patch_prototypes": 8}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tips.masked", self.masked)
        check_number("tips.mask_ratio", self.mask_ratio, high=0.99)
        check_count("tips.patch_prototypes", self.patch_prototypes)

    @property
    def teacher_view(self) -> str:
        return _VIEW

    @property
    def needs(self) -> frozenset[str]:
        second = {"image_prefix", _SECOND} if self.synthetic else set()
        return super().needs | second

    @property
    def row_needs(self) -> frozenset[str]:
        tokens = {f"{_VIEW}_tokens", f"teacher/{_VIEW}_tokens"} if self.mask_ratio else set()
        return frozenset(tokens)

    @property
    def fields(self) -> field_lib.BatchSpec:
        own: dict[str, field_lib.Field] = {**super().fields, _VIEW: field_lib.View(self.global_ops)}
        if self.synthetic:
            own[_SECOND] = field_lib.Captions(source=self.synthetic)
        return own

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        super().check(sizes, teacher)
        if not hasattr(sizes.image, "grid"):
            raise ValueError(
                f"tips masks patches, which {sizes.image.kind!r} has not; set "
                "model.image.kind='vit'"
            )
        if self.mask_ratio:
            check_square_grid("tips.mask_ratio", sizes)
        if self.synthetic and not sizes.image.num_registers:
            raise ValueError(
                f"tips.synthetic={self.synthetic!r} reads the image's first register; set "
                "model.image.num_registers to 1 or more"
            )

    @property
    def _patch_head(self) -> _self_distill.PrototypeHead:
        return dataclasses.replace(self._head, prototypes=self.patch_prototypes)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        keys, width = jax.random.split(rng, 4), sizes.image.width
        params = super().init_params(keys[0], sizes)
        if self.mask_ratio:
            params["patch_head"] = self._patch_head.init(keys[1], sizes.token_width)
            params["mask_token"] = 0.02 * jax.random.normal(keys[2], (width,))
        if self.synthetic:
            kernel = jax.random.normal(keys[3], (sizes.token_width, sizes.embed_dim))
            params["second"] = kernel * sizes.token_width**-0.5
        return params

    def init_state(self, sizes: CLIPConfig) -> State:
        own = {"patch_centre": jnp.zeros(self.patch_prototypes)} if self.mask_ratio else {}
        return super().init_state(sizes) | own

    def _places(self, ctx: Context) -> jax.Array:
        """int32[B, M], the patches that are masked."""
        return _masked_patches.places(ctx, self.mask_ratio)

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        if view != _VIEW or not self.mask_ratio:
            return {}
        return {"insert": _masked_patches.replaced(self._places(ctx), ctx.own["mask_token"])}

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        if not self.mask_ratio:
            return {}
        at = self._places(ctx)[:, :, None]
        student, teacher = (
            self._patch_head(head, jnp.take_along_axis(outputs[f"{who}{_VIEW}_tokens"], at, axis=1))
            for who, head in (
                ("", params["patch_head"]),
                ("teacher/", ctx.teacher_own.get("patch_head", params["patch_head"])),
            )
        )
        each = _self_distill.distillation(
            student,
            teacher,
            ctx.state["patch_centre"],
            self.student_temperature,
            self.teacher_temperature,
        )
        teacher = jax.lax.stop_gradient(jnp.mean(teacher, axis=1))
        return {"masked": jnp.mean(each, axis=1), "patches": teacher}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics, state = super().loss(params, state, outputs, ctx)
        if self.synthetic and self.contrastive:
            second, own = losses.infonce(
                self.second_embedding(params, outputs["image_prefix"], ctx.sizes),
                outputs[_SECOND],
                logit_scale=ctx.logit_scale,
                implementation=self.implementation,
                mesh=ctx.mesh,
            )
            loss += self.contrastive * (second - metrics["clip"]) / 2
            metrics |= {f"synthetic_{key}": each for key, each in own.items()}
            metrics["synthetic_clip"] = second
        if self.mask_ratio:
            masked = jnp.mean(outputs["masked"])
            loss, metrics["masked"] = loss + self.masked * masked, masked
            centre = _self_distill.moved(
                state["patch_centre"], outputs["patches"], self.centre_momentum
            )
            state = {**state, "patch_centre": centre}
        return loss, metrics, state

    def second_embedding(self, params: Params, prefix: jax.Array, sizes: CLIPConfig) -> jax.Array:
        """float32[B, D] of unit length, of the tower's class and register tokens [B, P, C]."""
        register = prefix[:, int(sizes.image.has_class_token)].astype(jnp.float32)
        return unit(jnp.matmul(register, params["second"], precision="highest"))
