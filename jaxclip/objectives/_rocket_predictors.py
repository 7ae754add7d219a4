"""What BYOLIP and SiamLIP share: each view's head predicts the other modality's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _rocket
from jaxclip.objectives._base import Context, Metrics, Outputs, Params
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives._rocket import IMAGES, PAIRS, TEXTS


@dataclasses.dataclass(frozen=True)
class Predictors(_rocket.Rocket):
    """Adds the mean of 2 - 2 cos(p, v) over both directions of the weak and four strong pairs.

    p is a predictor's guess from one view's projection, v the other's projection without a gradient
    (:meth:`targets`). A projector and a predictor for each modality serve weak and strong views.

    Attributes:
      predict_weight: of the added part.
      predict_width: of hidden layers.
      predict_features: of projections.
    """

    predict_weight: float = 1.0
    predict_width: int = 2048
    predict_features: int = 128

    small: ClassVar[Mapping[str, Any]] = {
        **_rocket.Rocket.small,
        "predict_width": 16,
        "predict_features": 8,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        name = self.method()
        check_number(f"{name}.predict_weight", self.predict_weight)
        check_count(f"{name}.predict_width", self.predict_width)
        check_count(f"{name}.predict_features", self.predict_features)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"{view}_pooled" for view in IMAGES + TEXTS}

    @property
    def projector(self) -> MLPHead:
        """Ends in a batch norm without scale and bias, which keeps it from collapsing."""
        options: dict[str, Any] = {"norm": "batch", "final_norm": "batch"}
        return MLPHead(self.predict_features, depth=2, width=self.predict_width, **options)

    @property
    def predictor(self) -> MLPHead:
        return MLPHead(self.predict_features, depth=2, width=self.predict_width, norm="batch")

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        keys = jax.random.split(rng, 4)
        x = jnp.zeros((2, self.predict_features))
        predictors = {
            tower: self.predictor.init(key, x)["params"]
            for tower, key in zip(("image", "text"), keys[2:], strict=True)
        }
        projectors = _rocket.init_heads(self.projector, keys[1], sizes)
        own = {"projector": projectors, "predictor": predictors}
        return super().init_params(keys[0], sizes) | own

    def project(self, params: Params, outputs: Outputs, prefix: str = "") -> dict[str, jax.Array]:
        """Projections of all views, float32[B, predict_features] by view."""
        return {
            view: _rocket.apply_head(
                self.projector, params["projector"], outputs, f"{prefix}{view}"
            )
            for view in IMAGES + TEXTS
        }

    def targets(
        self, projected: dict[str, jax.Array], outputs: Outputs, ctx: Context
    ) -> dict[str, jax.Array]:
        """What is predicted, by view."""
        raise NotImplementedError

    def relative(
        self, params: Params, outputs: Outputs, local: _rocket.Local, ctx: Context
    ) -> tuple[Any, Metrics]:
        del local
        projected = self.project(params, outputs)
        targets = self.targets(projected, outputs, ctx)
        predicted: Any = {
            view: self.predictor.apply({"params": params["predictor"][view.rpartition("/")[2]]}, x)
            for view, x in projected.items()
        }
        both = [*PAIRS, *((text, image) for image, text in PAIRS)]
        distance: Any = sum(
            losses.cosine_distance(predicted[a], targets[b]) for a, b in both
        ) / len(both)
        return self.predict_weight * distance, {"distance": distance}
