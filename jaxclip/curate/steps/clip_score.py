"""The cosine between a picture and its captions, by the vectors of a step ``embeddings``."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import CAPTIONS, Ragged, Rows
from jaxclip.curate.step import Step, check_choice
from jaxclip.curate.store import REASON


@dataclasses.dataclass(frozen=True)
class ClipScore(Step):
    """A column with the score of each record; ``top`` or ``where`` behind it choose.

    CLIP-score filters, DFN (2309.17425: the model is a small CLIP trained on trusted pairs), T-MARS
    and number-masked scores differ in the step ``embeddings`` before it alone.

    Attributes:
      image, text: columns with vectors.
      column: name of the score.
      reduce: of several captions: ``"max"``, ``"mean"`` or ``"first"``.
      min_caption: captions with a lower score go, and a record without any left.
    """

    image: str = "image"
    text: str = "text"
    column: str = "clip_score"
    reduce: str = "max"
    min_caption: float = -1.0

    reasons: ClassVar[tuple[str, ...]] = ("below_min_caption",)

    def wants(self) -> tuple[str, ...]:
        return self.image, self.text

    def makes(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self) -> None:
        check_choice("reduce", self.reduce, ("max", "mean", "first"))

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record, with its score (-1 without a caption)."""
        captions, text = rows.captions(), rows[self.text]
        image = np.asarray(rows[self.image], np.float32)
        # A caption without anything to embed has a vector of zeros, and the lowest score.
        scores = np.einsum("ed,ed->e", image[text.row], text.value.astype(np.float32))
        scores = np.where(np.any(text.value != 0, axis=1), scores, -1).astype(np.float32)
        passed = scores >= self.min_caption
        found = reduced(Ragged(captions.row[passed], scores[passed]), len(rows), self.reduce)
        count = np.bincount(captions.row, minlength=len(rows))
        left = np.bincount(captions.row[passed], minlength=len(rows))
        return {
            REASON: (left == 0) & (count > 0),
            self.column: found,
            CAPTIONS: Ragged(captions.row[passed], captions.value[passed]),
        }


def reduced(scores: Ragged, count: int, how: str) -> np.ndarray:
    """float32[count]: one score out of those of each row, -1 where there is none."""
    result = np.full(count, -1, np.float32)
    if how == "max":
        np.maximum.at(result, scores.row, scores.value)
        return result
    number = np.bincount(scores.row, minlength=count)
    if how == "mean":
        sums = np.bincount(scores.row, scores.value, minlength=count)
        return np.where(number > 0, sums / np.maximum(number, 1), -1).astype(np.float32)
    first = np.searchsorted(scores.row, np.flatnonzero(number))
    result[number > 0] = scores.value[first]
    return result
