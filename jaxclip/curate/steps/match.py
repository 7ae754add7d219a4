"""Match captions to a list of entries; a record that matches none goes (MetaCLIP, first half)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import matcher
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Ragged, Rows
from jaxclip.curate.step import Step, check_range, path_stamp
from jaxclip.curate.store import REASON

_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Match(Step):
    """Column ``entries``: which entries occur in the captions of a record (MetaCLIP, 2309.16671).

    An entry counts once for a record, however many of its captions have it.

    Attributes:
      entries: file with an entry a line, or a JSON list, or the folder of WordNet.
      lowercase: whether letter case does not count; the paper's code heeds it.
      min_matches: records with fewer entries go; 0 keeps all.
    """

    entries: str = ""
    lowercase: bool = False
    min_matches: int = 1

    reasons: ClassVar[tuple[str, ...]] = ("no_match",)

    def makes(self) -> tuple[str, ...]:
        return ("entries",)

    def check(self) -> None:
        if not self.entries:
            raise ValueError(
                "entries is missing: name a file with an entry a line, or WordNet's folder"
            )
        check_range("min_matches", self.min_matches, 0)
        matcher.read_entries(self.entries)
        matcher.Matcher([""], self.lowercase)  # the library is there

    def stamp(self) -> Any:
        return path_stamp(self.entries)

    def run(self, flow: Flow) -> None:
        stamp = self.stamp()
        flow.decide(functools.partial(self.verdict, stamp))
        entries = matcher.load(self.entries, stamp, self.lowercase).entries
        note_counts(flow, entries, flow.counts("counts", self.entries_of, len(entries)))

    def verdict(self, stamp: str, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        find = matcher.load(self.entries, stamp, self.lowercase)
        found = Ragged.of([find.of_all(texts).tolist() for texts in rows.texts])
        matches = np.bincount(found.row, minlength=len(rows))
        return {REASON: matches < self.min_matches, "entries": found, "matches": matches}

    def entries_of(self, rows: Rows) -> np.ndarray:
        """The entries of all records, one behind the other."""
        return rows["entries"].value


def note_counts(flow: Flow, entries: Sequence[str], counts: np.ndarray) -> None:
    """Tell how full entries are."""
    flow.note("entries", len(entries))
    flow.note("entries matched", int(np.sum(counts > 0)))
    flow.note("matches", int(counts.sum()))
    best = np.argsort(-counts, kind="stable")[:_SHOWN]
    rows = [[entries[e], int(counts[e])] for e in best if counts[e]]
    flow.note("most frequent entries", {"head": ["entry", "records"], "rows": rows})
