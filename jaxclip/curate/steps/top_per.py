"""Keep the best few records of every group: of a prompt, a source image, a label, a cluster."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.hashing import key_hashes
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range
from jaxclip.curate.store import INDEX, REASON


@dataclasses.dataclass(frozen=True)
class TopPer(Step):
    """The largest values of a score in each group; of equal ones, those with the least hash of key.

    REAL-Linear (2401.12425) retrieves 100 pictures a class so (``per="prompt_score_prompt",
    count=100, at_least=0.0`` behind ``prompt_score``), PathGen (2407.00203) patches of a slide.

    Attributes:
      column: the score, made by a step before or a member of the records' meta.
      per: what groups records: a column, or a member of their meta (numbers or text).
      count: how many of each group stay.
      at_least: records with a smaller score go, however few a group has.
    """

    column: str = ""
    per: str = ""
    count: int = 0
    at_least: float = -float("inf")

    reasons: ClassVar[tuple[str, ...]] = ("missing", "not_among_the_best")

    def check(self) -> None:
        for option in ("column", "per"):
            if not getattr(self, option):
                raise ValueError(f"{option} is missing: name a column, or a member of the meta")
        check_range("count", self.count, 1)

    def run(self, flow: Flow) -> None:
        flow.group("best", self.emit, self.settle, fill={"_is_best": False})
        flow.decide(self.verdict)

    def groups(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """uint64[n], a hash of each record's group, and bool[n]: which have group and score."""
        found: list[Any]
        if self.per in rows:
            found = [None if each < 0 else each for each in np.asarray(rows[self.per]).tolist()]
        else:
            found = [meta.get(self.per) for meta in rows.meta]
        has = np.array([each is not None for each in found], bool)
        scores = rows.values(self.column)
        return key_hashes([str(each) for each in found], "group"), has & ~np.isnan(scores)

    def emit(self, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Each record by its group."""
        group, has = self.groups(rows)
        scores = rows.values(self.column).astype(np.float32)
        chosen = has & (scores >= self.at_least)
        said: dict[str, np.ndarray] = {
            INDEX: rows.index,
            "score": scores,
            "hash": rows.hashes("ties"),
        }
        return group[chosen], {name: array[chosen] for name, array in said.items()}

    def settle(
        self, keys: np.ndarray, starts: np.ndarray, said: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The best of each group."""
        group = np.repeat(np.arange(len(keys)), np.diff(starts))
        order = np.lexsort((said[INDEX], said["hash"], -said["score"], group))
        place = np.arange(len(group)) - starts[group]  # order keeps groups where they are
        best = said[INDEX][order][place < self.count]
        return {INDEX: best, "_is_best": np.ones(len(best), bool)}

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        _, has = self.groups(rows)
        return {REASON: np.select([~has, ~rows["_is_best"]], [1, 2], 0)}
