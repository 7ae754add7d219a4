"""BarLIP: clip-rocket, and features of image and text that correlate one to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives import _rocket
from jaxclip.objectives._base import Context, Metrics, Outputs, Params
from jaxclip.objectives._checks import check_count, check_number


@dataclasses.dataclass(frozen=True)
class BarLIP(_rocket.Rocket):
    """Fini et al. 2023 (arXiv:2305.08675), after Barlow Twins (Zbontar 2021, arXiv:2103.03230).

    The loss of :class:`jaxclip.objectives.clip_rocket.ClipRocket` plus bar_weight times the mean,
    over the weak and the four strong pairs, of sum_d (C_dd - 1)^2 + redundancy sum_{d≠e} C_de^2. C
    is the correlation of the features of images with those of texts over the global batch; a head
    of three layers for each modality, ending in batch norm, makes them.

    Other options are those of :class:`jaxclip.objectives._rocket.Rocket`.

    Attributes:
      bar_weight: of the added part.
      redundancy: weight of correlations that should be 0.
      bar_width: of hidden layers.
      bar_features: D; C has D² entries.
    """

    bar_weight: float = 0.025
    redundancy: float = 5e-3
    bar_width: int = 3000
    bar_features: int = 8192

    small: ClassVar[Mapping[str, Any]] = {
        **_rocket.Rocket.small,
        "bar_width": 16,
        "bar_features": 8,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("barlip.bar_weight", self.bar_weight)
        check_number("barlip.redundancy", self.redundancy)
        check_count("barlip.bar_width", self.bar_width)
        check_count("barlip.bar_features", self.bar_features)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"image_pooled", "text_pooled"}

    @property
    def bar_head(self) -> MLPHead:
        """The head of each modality."""
        options: dict[str, Any] = {"norm": "batch", "final_norm": "batch"}
        return MLPHead(self.bar_features, depth=3, width=self.bar_width, **options)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        first, second = jax.random.split(rng)
        own = {"bar": _rocket.init_heads(self.bar_head, second, sizes)}
        return super().init_params(first, sizes) | own

    def relative(
        self, params: Params, outputs: Outputs, local: _rocket.Local, ctx: Context
    ) -> tuple[Any, Metrics]:
        del local, ctx
        features = {
            view: _rocket.apply_head(self.bar_head, params["bar"], outputs, view)
            for view in _rocket.IMAGES + _rocket.TEXTS
        }
        pairs = [
            barlow(correlation(features[image], features[text]), self.redundancy)
            for image, text in _rocket.PAIRS
        ]
        bar = jnp.mean(jnp.stack(pairs))
        return self.bar_weight * bar, {"barlow": bar}


def correlation(images: jax.Array, texts: jax.Array) -> jax.Array:
    """Zᵢᵀ Zₜ / B of two sets of features, float32[B, D] -> float32[D, D]."""
    return jnp.matmul(images.T, texts, precision=jax.lax.Precision.HIGHEST) / len(images)


def barlow(matrix: jax.Array, redundancy: float) -> jax.Array:
    """How far a correlation, float32[D, D], is from the identity: float32[]."""
    diagonal = jnp.diagonal(matrix)
    off = jnp.sum(jnp.square(matrix)) - jnp.sum(jnp.square(diagonal))
    return jnp.sum(jnp.square(diagonal - 1)) + redundancy * off
