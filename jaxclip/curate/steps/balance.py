"""Balance records over entries, classes or clusters: by a draw, or as weights for sampling."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.step import Step, check_choice, check_range
from jaxclip.curate.store import REASON, Stored


@dataclasses.dataclass(frozen=True)
class Balance(Step):
    """Keep a record with the probability that one of its groups wants it.

    With ``by="entries"`` this is MetaCLIP's second half (2309.16671): entry e with c_e records
    wants each with p_e = t / max(c_e, t), and a record stays with 1 - prod(1 - p_e) over its
    entries. So t is what an entry keeps at least, in expectation, if it has as many.

    Attributes:
      by: ``"entries"`` (of a step ``match``), ``"cluster"`` (of a step ``cluster``) or ``"label"``.
      t: records of a group up to which all stay. MetaCLIP's are 20 000 for 400 million pairs,
        170 000 for 2.5 billion.
      tail_share: in place of t: t is such that groups below it have this share of all matches
        (MetaCLIP 2, 2507.22062, which gives each language the English share).
      method: ``"cap"``, or ``"sqrt"``: p = sqrt(t / c) above t.
      output: ``"draw"`` drops records, by a hash of key and seed; ``"weight"`` keeps all, with the
        probability as column ``weight``, for sampling in training.
    """

    by: str = "entries"
    t: float = 0.0
    tail_share: float = 0.0
    method: str = "cap"
    output: str = "draw"

    reasons: ClassVar[tuple[str, ...]] = ("not_drawn",)

    def wants(self) -> tuple[str, ...]:
        return () if self.by == "label" else (self.by,)

    def makes(self) -> tuple[str, ...]:
        return ("weight",) if self.output == "weight" else ("probability",)

    def check(self) -> None:
        check_choice("by", self.by, ("entries", "cluster", "label"))
        check_choice("method", self.method, ("cap", "sqrt"))
        check_choice("output", self.output, ("draw", "weight"))
        if bool(self.t) == bool(self.tail_share):
            raise ValueError(f"give either t or tail_share, not {self.t} and {self.tail_share}")
        check_range("t", self.t, 0)
        check_range("tail_share", self.tail_share, 0, 1)

    def run(self, flow: Flow) -> None:
        counts = flow.counts("counts", self.members)
        t = self.t or t_of_share(counts, self.tail_share)
        p = flow.save("p", lambda: {"p": keep_probability(counts, t, self.method)})
        flow.decide(functools.partial(self.verdict, flow.salt("balance"), p))
        self._note(flow, counts, flow.counts("after", self.members, len(counts)), t)

    def groups(self, rows: Rows) -> Ragged:
        """The groups that each record belongs to."""
        if self.by == "entries":
            return rows["entries"]
        labels = np.asarray(rows[self.by])
        known = np.flatnonzero(labels >= 0)
        return Ragged(known, labels[known])

    def members(self, rows: Rows) -> np.ndarray:
        """The groups of all records, one behind the other."""
        return self.groups(rows).value

    def verdict(self, salt: str, stored: Stored, rows: Rows) -> dict[str, Any]:
        """What is said of each record; one without a group stays."""
        found = self.groups(rows)
        weight = keep_any(found, stored.arrays()["p"], len(rows))
        if self.output == "weight":
            return {REASON: np.zeros(len(rows), bool), "weight": weight}
        return {REASON: rows.uniforms(salt) >= weight, "probability": weight}

    def _note(self, flow: Flow, before: np.ndarray, after: np.ndarray, t: float) -> None:
        flow.note("t", float(t))
        flow.note("balance", {"head": ["", "before", "after"], "rows": summary(before, after, t)})


def keep_probability(counts: np.ndarray, t: float, method: str = "cap") -> np.ndarray:
    """float64[g]: p = t / max(c, t), or its square root."""
    p = t / np.maximum(np.asarray(counts, np.float64), t)
    return np.sqrt(p) if method == "sqrt" else p


def keep_any(groups: Ragged, p: np.ndarray, count: int) -> np.ndarray:
    """float64[count]: 1 - prod(1 - p) over the groups of each record; 1 for one without any."""
    refused = np.ones(count)
    np.multiply.at(refused, groups.row, 1 - p[groups.value])
    return np.where(np.bincount(groups.row, minlength=count) > 0, 1 - refused, 1.0)


def t_of_share(counts: np.ndarray, share: float) -> float:
    """The least count t such that groups below it have at least a share of all matches.

    Args:
      counts: int64[g].
      share: in (0, 1].
    """
    values, number = np.unique(counts[counts > 0], return_counts=True)
    if not len(values):
        return 1.0
    below = np.concatenate([[0], np.cumsum(values * number)[:-1]]) / np.sum(values * number)
    enough = np.flatnonzero(below >= share - 1e-12)
    return float(values[enough[0]] if len(enough) else values[-1] + 1)


def summary(before: np.ndarray, after: np.ndarray, t: float) -> list[list[Any]]:
    """Rows ``[what, before, after]`` about head and tail; the groups are those of before."""
    tail = (before > 0) & (before < t)
    head = before >= t
    order = np.argsort(-before, kind="stable")
    top = order[: max(1, int(np.sum(before > 0)) // 100)]
    rows: list[list[Any]] = [
        ["groups with records", int(np.sum(before > 0)), int(np.sum(after > 0))],
        ["groups with at least t", int(np.sum(before >= t)), int(np.sum(after >= t))],
        ["records in groups, each counted", int(before.sum()), int(after.sum())],
        ["of these in the tail (before < t)", int(before[tail].sum()), int(after[tail].sum())],
        ["of these in the head", int(before[head].sum()), int(after[head].sum())],
    ]
    for name, chosen in (("share of the tail", tail), ("share of the largest 1% of groups", top)):
        rows.append([name, *(float(c[chosen].sum() / max(1, c.sum())) for c in (before, after))])
    return rows
