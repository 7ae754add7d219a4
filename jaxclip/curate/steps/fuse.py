"""One score out of several, each brought to [0, 1] over the pool."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step
from jaxclip.curate.store import REASON, Stored


@dataclasses.dataclass(frozen=True)
class Fuse(Step):
    """Weighted mean of scores as Sieve has it (2310.02110): min-max over all, then 1/2 each.

    Attributes:
      columns: the scores, made by steps before or members of the records' meta.
      weights: of them; empty: equal.
      column: name of the fused score.
    """

    columns: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    column: str = "fused_score"

    reasons: ClassVar[tuple[str, ...]] = ("missing",)

    def makes(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self) -> None:
        if len(self.columns) < 2:
            raise ValueError(f"columns={self.columns!r}: name at least two scores")
        if self.weights and len(self.weights) != len(self.columns):
            raise ValueError(f"{len(self.weights)} weights for {len(self.columns)} columns")
        if self.weights and not sum(map(float, self.weights)) > 0:
            raise ValueError(f"weights={self.weights!r} must have a sum above 0")

    def run(self, flow: Flow) -> None:
        ranges = flow.total("ranges", self.ranges, _widest)
        flow.decide(functools.partial(self.verdict, ranges))

    def values(self, rows: Rows) -> np.ndarray:
        """float64[n, columns]; NaN if missing, or infinite, which would dwarf the others."""
        values = np.stack([rows.values(name) for name in self.columns], axis=1)
        return np.where(np.isfinite(values), values, np.nan)

    def ranges(self, rows: Rows) -> dict[str, np.ndarray]:
        """Least and largest value of each column among records that have all."""
        values = self.values(rows)
        whole = values[~np.isnan(values).any(axis=1)]
        return {
            "least": whole.min(axis=0, initial=np.inf),
            "most": whole.max(axis=0, initial=-np.inf),
        }

    def verdict(self, stored: Stored, rows: Rows) -> dict[str, Any]:
        """What is said of each record, with its fused score."""
        values, found = self.values(rows), stored.arrays()
        width = np.where(found["most"] > found["least"], found["most"] - found["least"], 1)
        weights = np.asarray(self.weights or np.ones(len(self.columns)), np.float64)
        fused = ((values - found["least"]) / width) @ (weights / weights.sum())
        return {REASON: np.isnan(fused), self.column: fused.astype(np.float32)}


def _widest(found: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "least": np.min([each["least"] for each in found], axis=0),
        "most": np.max([each["most"] for each in found], axis=0),
    }
