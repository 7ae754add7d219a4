"""Keep the records with the largest values: an exact share or number of them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import select
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range
from jaxclip.curate.store import REASON, Stored


@dataclasses.dataclass(frozen=True)
class Top(Step):
    """The best of a score; of equal ones, those that a hash of their keys chooses.

    DataComp's CLIP-score filter (2304.14108) is ``share=0.3``, a data filtering network's (DFN,
    2309.17425) ``share=0.15``, the number-masked score's (2309.13770) ``share=0.4``.

    Attributes:
      column: made by a step before, or else a member of the record's meta.
      share: of the records that have the value.
      count: how many, in place of a share.
      lowest: keep the smallest in place of the largest.
    """

    column: str = ""
    share: float = 0.0
    count: int = 0
    lowest: bool = False

    reasons: ClassVar[tuple[str, ...]] = ("missing", "not_among_the_best")

    def check(self) -> None:
        if not self.column:
            raise ValueError("column is missing: name a score, such as 'clip_score'")
        if bool(self.share) == bool(self.count):
            raise ValueError(f"give either share or count, not {self.share} and {self.count}")
        check_range("share", self.share, 0, 1)
        check_range("count", self.count, 0)

    def run(self, flow: Flow) -> None:
        found = select.thresholds(flow, "top", self.values, self.wanted)
        flow.decide(functools.partial(self.verdict, flow.salt("ties"), found))

    def wanted(self, counts: np.ndarray) -> np.ndarray:
        """How many are kept of so many."""
        if self.count:
            return np.minimum(counts, self.count)
        return np.floor(counts * self.share + 1e-9).astype(np.int64)

    def values(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Group (-1: no value) and value of each record."""
        values = rows.values(self.column)
        ordered = (-values if self.lowest else values).astype(np.float32)
        return np.where(np.isnan(values), -1, 0), ordered

    def verdict(self, salt: str, found: Stored, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        group, value = self.values(rows)
        best = select.is_above(rows, salt, found, group, value)
        return {REASON: np.select([group < 0, ~best], [1, 2], 0)}
