"""Contrast of nested sizes: the first numbers of an embedding are an embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.models import CLIPConfig, unit
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import as_integers, check_number


@dataclasses.dataclass(frozen=True)
class Matryoshka(Objective):
    """Kusupati et al. 2022 (arXiv:2205.13147), on both towers with one logit scale.

    Σ_d w_d L(unit(I[:, :d]), unit(T[:, :d])) with L the contrastive loss of ``kind``. Every prefix
    is brought to unit length again.

    Attributes:
      dims: the sizes d; empty for the model's own D and its halves down to 64.
      weights: w_d for each of ``dims``; empty for 1.
      kind: ``"softmax"`` or ``"sigmoid"``.
      implementation: ``"plain"`` or ``"blockwise"``.
    """

    dims: Sequence[int] = ()
    weights: Sequence[float] = ()
    kind: str = "softmax"
    implementation: str = "plain"

    small: ClassVar[Mapping[str, Any]] = {"dims": (4, 16)}

    def __post_init__(self) -> None:
        dims = as_integers("matryoshka.dims", self.dims)
        for weight in self.weights:
            check_number("matryoshka.weights", weight)
        if self.weights and len(self.weights) != len(dims):
            raise ValueError(
                f"matryoshka.weights={self.weights!r} must be one for each of dims={self.dims!r}"
            )
        self._contrast()

    def _contrast(self) -> losses.Loss:
        return losses.from_config({"name": self.kind, "implementation": self.implementation})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        if self.dims and max(self.dims) > sizes.embed_dim:
            raise ValueError(
                f"matryoshka.dims={self.dims!r} must not exceed model.embed_dim={sizes.embed_dim}"
            )

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        contrast = self._contrast()
        size = outputs["image"].shape[-1]
        dims = self.dims or [size, *(size >> k for k in range(1, 32) if size >> k >= 64)]
        total, metrics = jnp.zeros((), jnp.float32), {}
        for dim, weight in zip(dims, self.weights or [1.0] * len(dims), strict=True):
            value, own = contrast(
                unit(outputs["image"][:, :dim]),
                unit(outputs["text"][:, :dim]),
                logit_scale=ctx.logit_scale,
                logit_bias=ctx.logit_bias,
                mesh=ctx.mesh,
            )
            total += weight * value
            metrics[f"loss_{dim}"] = value
            metrics |= {f"{key}_{dim}": each for key, each in own.items()}
        return total, metrics, state
