"""CLIP on captions of several sources: rewrites, enriched ones, other languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxclip import fields as field_lib
from jaxclip.objectives._base import Context, Metrics, Outputs, Params, State
from jaxclip.objectives._checks import check_count, check_number
from jaxclip.objectives.contrastive import Contrastive


@dataclasses.dataclass(frozen=True)
class LaCLIP(Contrastive):
    """Fan et al. 2023 (arXiv:2305.20088): a visit draws one of the true caption and its rewrites.

    The loss is CLIP's (or SigLIP's: ``kind``) on the caption that was drawn; what differs is the
    draw. Without ``shares`` all captions of a record have equal chances, the true one among them
    (LaCLIP: one of five). With ``shares`` a source is drawn first: VeCLIP (arXiv:2310.07699) has
    half alt-texts, half enriched captions, which is recalled; the study of captions of quality
    (arXiv:2405.08911) and the ten languages of RS-M-CLIP (arXiv:2410.23370) are such shares, too. A
    record that lacks a source gives its share to the others. One caption a picture and batch: two
    of one picture would be wrong answers for each other.

    The other options are those of :class:`Contrastive`.

    Attributes:
      shares: {tag or language: share}; empty for equal chances of all captions.
      min_words: shorter captions are passed over where there is a longer one (LaCLIP: 2).
      count: captions of each picture in a step; the loss is the mean of so many, at the cost of so
        many text passes.
    """

    shares: Mapping[str, float] = dataclasses.field(default_factory=dict)
    min_words: int = 2
    count: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("laclip.min_words", self.min_words, 0)
        check_count("laclip.count", self.count)
        if not isinstance(self.shares, Mapping):
            raise ValueError(f"laclip.shares={self.shares!r} must be {{tag: share}}")
        for tag, share in self.shares.items():
            check_number(f"laclip.shares[{tag!r}]", share, positive=True)

    @property
    def fields(self) -> field_lib.BatchSpec:
        shares = tuple((str(tag), float(share)) for tag, share in sorted(self.shares.items()))
        return {"text": field_lib.Captions(self.count, min_words=self.min_words, shares=shares)}

    def loss(
        self, params: Params, state: State, outputs: Outputs, ctx: Context
    ) -> tuple[jax.Array, Metrics, State]:
        if self.count == 1:
            return super().loss(params, state, outputs, ctx)
        texts = jnp.moveaxis(outputs["text"], 1, 0)
        each = [
            super(LaCLIP, self).loss(params, state, {**outputs, "text": one}, ctx)[:2]
            for one in texts
        ]
        metrics: Any = {key: sum(m[key] for _, m in each) / self.count for key in each[0][1]}
        total: Any = sum(value for value, _ in each) / self.count
        return total, metrics, state
