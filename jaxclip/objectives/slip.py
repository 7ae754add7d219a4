"""SLIP: CLIP beside SimCLR on two more views of the picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _views
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import IMPLEMENTATIONS, check_choice, check_count, check_number
from jaxclip.objectives._clip import clip_part


@dataclasses.dataclass(frozen=True)
class SLIP(Objective):
    """Mu et al. 2021 (arXiv:2112.12750): CLIP + ssl_weight * SimCLR(view 1, view 2).

    The views' vectors before the projection go through an MLP of three layers with batch norm
    (over the global batch, however it is cut) to unit length. Each step runs the image tower three
    times: ``remat`` or ``num_micro_batches`` keep its memory down.

    The paper: base view ``random_resized_crop(0.5, 1.0)`` (``config.data.image_ops``), learning
    rate 3e-3 at 4096, weight decay 0.1, betas 0.9 and 0.98, 25 epochs with 1 of warm-up.

    Attributes:
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
      ssl_weight: of SimCLR.
      temperature: of SimCLR.
      image_ops: of the two views.
      width: of the MLP's hidden layers.
      features: that come out of it.
      implementation: of both contrasts, ``"plain"`` or ``"blockwise"``.
    """

    contrastive: float = 1.0
    ssl_weight: float = 1.0
    temperature: float = 0.1
    image_ops: str = _views.STRONG_IMAGE_OPS
    width: int = 4096
    features: int = 256
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"width": 16, "features": 8}

    def __post_init__(self) -> None:
        check_number("slip.contrastive", self.contrastive)
        check_choice("slip.implementation", self.implementation, IMPLEMENTATIONS)
        check_number("slip.ssl_weight", self.ssl_weight)
        check_number("slip.temperature", self.temperature, positive=True)
        check_count("slip.width", self.width)
        check_count("slip.features", self.features)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text", "view1/image_pooled", "view2/image_pooled"})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return _views.image_views(2, self.image_ops)

    def _head(self, dtype: Any) -> MLPHead:
        return MLPHead(
            self.features, depth=3, width=self.width, norm="batch", unit=True, dtype=dtype
        )

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        x = jax.numpy.zeros((2, sizes.image.width))
        return {"head": self._head(x.dtype).init(rng, x)["params"]}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        images, texts = outputs["image"], outputs["text"]
        loss, metrics = clip_part(
            self.contrastive, images, texts, ctx, implementation=self.implementation
        )
        pooled = (outputs[f"view{k}/image_pooled"] for k in (1, 2))
        views: Any = [self._head(x.dtype).apply({"params": params["head"]}, x) for x in pooled]
        ssl, own = losses.simclr(
            *views,
            logit_scale=jnp.asarray(-math.log(self.temperature)),
            implementation=self.implementation,
            mesh=ctx.mesh,
        )
        metrics |= {"simclr": ssl, "simclr_accuracy": own["accuracy"]}
        return loss + self.ssl_weight * ssl, metrics, state
