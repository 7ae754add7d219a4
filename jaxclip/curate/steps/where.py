"""Keep records by one of their values: a score of an earlier step, or a member of their meta."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_order
from jaxclip.curate.store import REASON


@dataclasses.dataclass(frozen=True)
class Where(Step):
    """A condition on a value.

    LAION-5B's usual cuts are ``{"column": "punsafe", "at_most": 0.5}`` and ``{"column":
    "pwatermark", "at_most": 0.8}``, its CLIP scores ``{"column": "clip_score", "at_least": 0.28}``.

    Attributes:
      column: made by a step before, ``label``, ``width``, ``height``, ``bytes``, or else a member
        of the record's meta.
      at_least, at_most: bounds of a number.
      one_of: words, of which the value must be one.
      keep_missing: whether records without the value stay.
    """

    column: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf
    one_of: tuple[str, ...] = ()
    keep_missing: bool = False

    reasons: ClassVar[tuple[str, ...]] = ("missing", "below", "above", "other")

    def check(self) -> None:
        if not self.column:
            raise ValueError("column is missing: name a score, or a member of the records' meta")
        if not self.one_of and math.isinf(self.at_least) and math.isinf(self.at_most):
            raise ValueError(f"no condition on {self.column!r}: give at_least, at_most or one_of")
        check_order("at_least", self.at_least, "at_most", self.at_most)
        if self.one_of and not (math.isinf(self.at_least) and math.isinf(self.at_most)):
            raise ValueError(
                "give one_of, for words, or at_least and at_most, for numbers; for both, two steps"
            )

    def run(self, flow: Flow) -> None:
        flow.decide(self.verdict)

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        if self.one_of:
            found = [meta.get(self.column) for meta in rows.meta]
            if self.column in rows:
                found = list(rows[self.column])
            known = set(map(str, self.one_of))
            missing = np.array([value is None for value in found], bool)
            other = np.array([str(value) not in known for value in found], bool)
            return {REASON: np.select([missing, other], [0 if self.keep_missing else 1, 4], 0)}
        values = rows.values(self.column)
        wrong = [np.isnan(values), values < self.at_least, values > self.at_most]
        return {REASON: np.select(wrong, [0 if self.keep_missing else 1, 2, 3], 0)}
