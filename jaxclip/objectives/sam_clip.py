"""SAM-CLIP: one image tower learns from several teachers, each by a head of its own."""

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
from jaxclip.objectives._checks import check_choice, check_count, check_number, filled
from jaxclip.objectives._clip import clip_part_if_any

_OPTIONS = {"key": "", "size": 0, "weight": 1.0, "distance": "cosine"}
DISTANCES = ("cosine", "smooth_l1")


@dataclasses.dataclass(frozen=True)
class SAMCLIP(Objective):
    """Wang et al. 2023, SAM-CLIP (arXiv:2310.15308): Σ_i weight_i D(head_i(tokens), teacher_i).

    Each teacher is a vector that records keep (``pipeline.write_stored``, or the record's own
    list): head_i, a linear map, is applied to every patch, the maximum over patches is taken, and D
    is 1 - cos or Smooth-L1. A teacher's records are its own replay data: ``config.data.mixture``
    puts both data sets into a batch, and a record without a teacher's vector does not count for
    that teacher. unit(head_i(token)) against a teacher's class vectors is a dense zero-shot
    segmentation: :meth:`dense`.

    The paper's second teacher is SAM itself, with prompts and masks (focal and dice loss, weight
    10), whose decoder is not here: its vectors may be. Its first phase trains the new head alone
    (``config.optim.groups``: freeze ``^(?!objective/)``), batches are 2048 + 32, and the backbone's
    learning rate is below the heads'.

    Attributes:
      teachers: ``{"key": name of the vectors, "size": their length, "weight": 1.0, "distance":
        "cosine" or "smooth_l1"}`` each.
      contrastive: weight of CLIP's loss beside it.
    """

    teachers: Sequence[Mapping[str, Any]] = (
        {"key": "clip_embedding", "size": 512},
        {"key": "sam_embedding", "size": 256, "weight": 10.0},
    )
    contrastive: float = 0.0

    small: ClassVar[Mapping[str, Any]] = {
        "teachers": [
            {"key": "a", "size": 6},
            {"key": "b", "size": 4, "weight": 2.0, "distance": "smooth_l1"},
        ]
    }

    def __post_init__(self) -> None:
        check_number("sam_clip.contrastive", self.contrastive)
        for each in self._teachers():
            check_count("sam_clip.teachers: size", each["size"])
            check_number("sam_clip.teachers: weight", each["weight"])
            check_choice("sam_clip.teachers: distance", each["distance"], DISTANCES)

    def _teachers(self) -> list[dict[str, Any]]:
        return filled("sam_clip.teachers", self.teachers, _OPTIONS)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"image", "text"} if self.contrastive else ())

    @property
    def row_needs(self) -> frozenset[str]:
        return frozenset({"image_tokens", *self.fields})

    @property
    def fields(self) -> field_lib.BatchSpec:
        return {
            f"stored/{each['key']}": field_lib.Stored(each["key"], each["size"], required=False)
            for each in self._teachers()
        }

    def init_params(self, rng: jax.Array, sizes: CLIPConfig) -> Params:
        teachers = self._teachers()
        x = jnp.zeros((1, sizes.token_width))
        return {
            each["key"]: MLPHead(each["size"], depth=1).init(key, x)["params"]
            for key, each in zip(jax.random.split(rng, len(teachers)), teachers, strict=True)
        }

    def dense(self, params: Params, key: str, tokens: jax.Array) -> jax.Array:
        """float32[B, N, size] of unit length: the patches in the space of a teacher."""
        size = next(each["size"] for each in self._teachers() if each["key"] == key)
        head = MLPHead(size, depth=1, unit=True, dtype=tokens.dtype)
        out: Any = head.apply({"params": params[key]}, tokens)
        return out

    def rows(self, params: Params, outputs: Outputs, ctx: Context) -> dict[str, jax.Array]:
        tokens, results = outputs["image_tokens"], {}
        for each in self._teachers():
            key, target = each["key"], outputs[f"stored/{each['key']}"]
            head = MLPHead(each["size"], depth=1, dtype=tokens.dtype)
            mapped: Any = head.apply({"params": params[key]}, tokens)
            ours = jnp.max(mapped, axis=1)
            if each["distance"] == "cosine":
                value = 1.0 - jnp.sum(unit(ours) * unit(target), axis=-1)
            else:
                value = jnp.mean(smooth_l1(ours - target), axis=-1)
            there = jnp.any(target != 0, axis=-1)
            results[f"{key}_distance"] = jnp.where(there, value, 0.0)
            results[f"{key}_count"] = there.astype(jnp.float32)
        return results

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        loss, metrics = clip_part_if_any(self.contrastive, outputs, ctx)
        for each in self._teachers():
            key = each["key"]
            count = jnp.sum(outputs[f"{key}_count"])
            value = jnp.sum(outputs[f"{key}_distance"]) / jnp.maximum(count, 1.0)
            loss += each["weight"] * value
            metrics |= {key: value, f"{key}_share": count / len(outputs[f"{key}_count"])}
        return loss, metrics, state


def smooth_l1(difference: jax.Array) -> jax.Array:
    """x² / 2 within 1 of zero, |x| - 1/2 outside (Girshick, 2015, arXiv:1504.08083)."""
    size = jnp.abs(difference)
    return jnp.where(size < 1.0, 0.5 * difference**2, size - 0.5)
