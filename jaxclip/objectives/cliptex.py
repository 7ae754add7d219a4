"""CLIPTeX: light heads on the patches tell what experts say of the picture, place by place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.models import CLIPConfig, unit
from jaxclip.models.heads import MLPHead
from jaxclip.objectives._base import Context, Metrics, Objective, Outputs, Params, State
from jaxclip.objectives._checks import (
    check_choice,
    check_count,
    check_number,
    check_square_grid,
    filled,
)
from jaxclip.objectives._clip import clip_part_if_any

_OPTIONS = {"key": "", "kind": "", "classes": 0, "weight": 1.0}
# Numbers of a place in the record.
KINDS = {"segments": 1, "depth": 1, "normals": 3}


@dataclasses.dataclass(frozen=True)
class CLIPTeX(Objective):
    """Salehi et al. 2023, CLIP meets model zoo experts (arXiv:2310.14108): CLIP + Σ_k weight_k
    L_k(head_k(patches), map of expert k). Recalled; there is no code.

    An expert's map is made once and kept with the record at the size of the tower's grid: a list of
    grid² numbers, row by row (3 for each place of normals: all x, y and z of a place in a row).
    ``segments``: class numbers, cross-entropy; -1 does not count. ``depth``: absolute difference; 0
    or less does not count. ``normals``: the angle, 1 - cos; (0, 0, 0) does not count. Heads are
    linear and dropped after training.

    Maps are not moved with the picture: ``data.image_ops`` must leave every pixel in its place
    (colours, blur, erasing). A crop or a mirror would make wrong labels.

    Attributes:
      experts: ``{"key": name in the records, "kind": "segments", "depth" or "normals", "classes":
        of segments, "weight": 1.0}`` each.
      grid: patches along a side of the tower, and of the maps.
      contrastive: weight of CLIP's loss; 0 where a contrastive term of its own is listed.
    """

    experts: Sequence[Mapping[str, Any]] = ({"key": "depth", "kind": "depth"},)
    grid: int = 14
    contrastive: float = 1.0

    small: ClassVar[Mapping[str, Any]] = {
        "experts": [
            {"key": "s", "kind": "segments", "classes": 3},
            {"key": "d", "kind": "depth"},
            {"key": "n", "kind": "normals", "weight": 0.5},
        ],
        "grid": 4,
    }

    def __post_init__(self) -> None:
        check_number("cliptex.contrastive", self.contrastive)
        check_count("cliptex.grid", self.grid)
        for each in self._experts():
            check_choice("cliptex.experts: kind", each["kind"], KINDS)
            check_number("cliptex.experts: weight", each["weight"])
            if each["kind"] == "segments":
                check_count("cliptex.experts: classes", each["classes"], 2)

    def _experts(self) -> list[dict[str, Any]]:
        return filled("cliptex.experts", self.experts, _OPTIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"} if self.contrastive else ())

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", *self.fields})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {
            f"map/{each['key']}": field_lib.Stored(each["key"], self.grid**2 * KINDS[each["kind"]])
            for each in self._experts()
        }

    @property
    def whole_views(self) -> frozenset[str]:
        return frozenset({"image"})

    def check(self, sizes: CLIPConfig, teacher: CLIPConfig | None) -> None:
        check_square_grid("cliptex", sizes)
        if getattr(sizes.image, "grid", None) != self.grid:
            raise ValueError(
                f"cliptex.grid={self.grid} is that of the maps; the image tower has "
                f"{getattr(sizes.image, 'grid', None)} patches along a side"
            )

    def _head(self, expert: Mapping[str, Any], dtype: Any) -> MLPHead:
        size = expert["classes"] if expert["kind"] == "segments" else KINDS[expert["kind"]]
        return MLPHead(size, depth=1, dtype=dtype)

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        experts, x = self._experts(), jnp.zeros((1, sizes.token_width))
        return {
            each["key"]: self._head(each, x.dtype).init(key, x)["params"]
            for key, each in zip(jax.random.split(rng, len(experts)), experts, strict=True)
        }

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        tokens, results = outputs["image_tokens"], {}
        for each in self._experts():
            key = each["key"]
            told: Any = self._head(each, tokens.dtype).apply({"params": params[key]}, tokens)
            maps = outputs[f"map/{key}"].reshape(*tokens.shape[:2], -1)
            value, counts = disagreement(each["kind"], told, maps)
            results[f"{key}_sum"] = jnp.sum(value, axis=1, where=counts)
            results[f"{key}_count"] = jnp.sum(counts, axis=1, dtype=jnp.float32)
        return results

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part_if_any(self.contrastive, outputs, ctx)
        for each in self._experts():
            key = each["key"]
            count = jnp.maximum(jnp.sum(outputs[f"{key}_count"]), 1.0)
            metrics[key] = jnp.sum(outputs[f"{key}_sum"]) / count
            loss += each["weight"] * metrics[key]
        return loss, metrics, state


def disagreement(kind: str, told: jax.Array, maps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(loss float32[B, N], bool[B, N])`` of each place, and which places count.

    Args:
      kind: of :data:`KINDS`.
      told: float32[B, N, classes, 1 or 3], by a head.
      maps: float32[B, N, 1 or 3], by the expert.
    """
    if kind == "normals":
        return 1.0 - jnp.sum(unit(told) * unit(maps), axis=-1), jnp.any(maps != 0, axis=-1)
    if kind == "depth":
        return jnp.abs(told - maps)[..., 0], maps[..., 0] > 0
    label = jnp.round(maps[..., 0]).astype(jnp.int32)
    counts = (label >= 0) & (label < told.shape[-1])
    chosen = jnp.take_along_axis(told, jnp.where(counts, label, 0)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(told, axis=-1) - chosen, counts
