"""A-CLIP: views of which only the patches run that a moving average attends to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.models.heads import MLPHead
from jaxclip.models.patch_choice import best_blocks
from jaxclip.objectives import _views
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import (
    IMPLEMENTATIONS,
    check_choice,
    check_count,
    check_follows,
    check_number,
)

VIEW_OPS = (
    "random_resized_crop(0.5, 1.0)|color_jitter(0.4, 0.4, 0.2, 0.1, p=0.8)|grayscale(0.2)"
    "|blur(2.0, 0.1)|solarize(128, 0.2)"
)
_VIEWS = ("view1/image", "view2/image")


@dataclasses.dataclass(frozen=True)
class ACLIP(Objective):
    """Yang et al. 2022 (arXiv:2212.08653): CLIP, SimCLR and BYOL on two half-seen views.

    A teacher that follows the run (``config.teacher = {"kind": "ema", "decay": [[0, 0.996],
    [last, 1.0]]}``) sees both views whole. Its attention to patches, from the class token (or from
    all tokens where there is none), the mean over blocks and heads, is averaged over blocks of
    patches; the best ones run. The loss is the mean of CLIP's for the two views, plus SimCLR
    between them, plus byol * mean(2 - 2 cos(prediction, the teacher's projection)).

    In the paper the teacher sees a third crop that holds both views, and its attention is cut out
    for each. Records give no boxes of crops, so here the teacher sees each view for itself, and a
    view predicts the teacher's projection of the other one.

    Attributes:
      keep_share: of the blocks that run, floor(share * blocks) + 1; 1 for all.
      block: side of a block, patches.
      simclr: weight of SimCLR.
      byol: weight of the prediction.
      temperature: of SimCLR.
      image_ops: of the two views.
      width: of the heads' hidden layers.
      features: that come out of them.
      implementation: of the contrasts, ``"plain"`` or ``"blockwise"``.
    """

    keep_share: float = 0.5
    block: int = 2
    simclr: float = 1.0
    byol: float = 2.0
    temperature: float = 0.1
    image_ops: str = VIEW_OPS
    width: int = 4096
    features: int = 256
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"width": 16, "features": 8}

    def __post_init__(self) -> None:
        for name in ("simclr", "byol"):
            check_number(f"a_clip.{name}", getattr(self, name))
        check_number("a_clip.keep_share", self.keep_share, high=1.0)
        check_number("a_clip.temperature", self.temperature, positive=True)
        for name in ("block", "width", "features"):
            check_count(f"a_clip.{name}", getattr(self, name))
        check_choice("a_clip.implementation", self.implementation, IMPLEMENTATIONS)

    @property
    def needs(self) -> frozenset[str]:
        own = {f"{view}{kind}" for view in _VIEWS for kind in ("", "_pooled")}
        return frozenset({"text", *own, *(f"teacher/{view}_pooled" for view in _VIEWS)})

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset(f"teacher/{view}_attention" for view in _VIEWS)

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _views.image_views(2, self.image_ops)

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if sizes.image.grid % self.block:
            raise ValueError(
                f"a_clip.block={self.block} does not divide the {sizes.image.grid} patches of a "
                "side; use 1"
            )

    def check_run(self, global_batch_size: int, teacher: str) -> None:
        check_follows("a_clip", teacher)

    def tower_options(self, view: str, batch: Outputs, ctx: Context) -> dict[str, Any]:
        if view not in _VIEWS or self.keep_share == 1.0:
            return {}
        attention = batch[f"teacher/{view}_attention"]
        grid = ctx.sizes.image.grid
        first = attention.shape[-1] - grid**2
        has_class = ctx.sizes.image.has_class_token
        to_patches = attention[:, 0, first:] if has_class else attention[:, :, first:].mean(1)
        return {"keep": best_blocks(to_patches, grid, self.block, self.keep_share)}

    def _head(self, depth: int) -> MLPHead:
        return MLPHead(self.features, depth=depth, width=self.width, norm="batch")

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        pooled, projected = jnp.zeros((2, sizes.image.width)), jnp.zeros((2, self.features))
        heads = {"simclr": (3, pooled), "projector": (2, pooled), "predictor": (2, projected)}
        return {
            name: self._head(depth).init(key, x)["params"]
            for key, (name, (depth, x)) in zip(jax.random.split(rng, 3), heads.items(), strict=True)
        }

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        def head(depth: int, params: Params, x: jax.Array) -> Any:
            return self._head(depth).apply({"params": params}, x)

        options: dict[str, Any] = {"implementation": self.implementation, "mesh": ctx.mesh}
        text, pooled = outputs["text"], [outputs[f"{view}_pooled"] for view in _VIEWS]
        clip, metrics = zip(
            *[
                losses.infonce(outputs[view], text, logit_scale=ctx.logit_scale, **options)
                for view in _VIEWS
            ],
            strict=True,
        )
        simclr, _ = losses.simclr(
            *(unit(head(3, params["simclr"], x)) for x in pooled),
            logit_scale=jnp.asarray(-math.log(self.temperature)),
            **options,
        )
        projector = ctx.teacher_own["projector"]
        targets = [head(2, projector, outputs[f"teacher/{view}_pooled"]) for view in _VIEWS]
        guesses = [head(2, params["predictor"], head(2, params["projector"], x)) for x in pooled]
        byol = sum(losses.cosine_distance(guesses[k], targets[1 - k]) for k in (0, 1)) / 2
        parts = {"clip": sum(clip) / 2, "simclr": simclr, "byol": byol}
        loss = parts["clip"] + self.simclr * simclr + self.byol * byol
        return loss, {**metrics[0], **parts}, state
