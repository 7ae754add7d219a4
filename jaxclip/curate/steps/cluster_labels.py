"""Keep or drop whole clusters by a table of labels that somebody who looked at them wrote."""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, path_stamp
from jaxclip.curate.store import REASON
from jaxclip.registry import hint


@dataclasses.dataclass(frozen=True)
class ClusterLabels(Step):
    """BIOMEDICA's way (2501.07171): cluster, label clusters by hand, filter records by label.

    Attributes:
      table: CSV file with a column ``cluster`` and others, such as ``panel``.
      column: of the table.
      keep: values of it; empty: all but those in ``drop``.
      drop: values of it.
      keep_unlabelled: whether clusters that the table lacks stay.
    """

    table: str = ""
    column: str = ""
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep_unlabelled: bool = False

    reasons: ClassVar[tuple[str, ...]] = ("other_label", "unlabelled")

    def wants(self) -> tuple[str, ...]:
        return ("cluster",)

    def check(self) -> None:
        if bool(self.keep) == bool(self.drop):
            raise ValueError("give either keep or drop, lists of values of the column")
        read_labels(self.table, self.column)

    def stamp(self) -> Any:
        return path_stamp(self.table)

    def run(self, flow: Flow) -> None:
        flow.decide(functools.partial(self.verdict, read_labels(self.table, self.column)))

    def verdict(self, labels: dict[int, str], rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        codes = np.array([self.code(labels.get(each)) for each in rows["cluster"].tolist()], int)
        return {REASON: codes}

    def code(self, label: str | None) -> int:
        """0 for a label that stays, else the number of the reason."""
        if label is None:
            return 0 if self.keep_unlabelled else 2
        wanted = label in self.keep if self.keep else label not in self.drop
        return 0 if wanted else 1


def read_labels(path: str, column: str) -> dict[int, str]:
    """Labels by cluster.

    Raises:
      FileNotFoundError: there is no such table.
      ValueError: it has no such column, or rows without the number of a cluster.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"table {path!r}: no such file; a CSV file with a column 'cluster'")
    with file.open(newline="", encoding="utf-8-sig") as opened:
        table = csv.DictReader(opened)
        names = list(table.fieldnames or ())
        for name in ("cluster", column):
            if name not in names:
                raise ValueError(f"table {path!r} has no column {name!r}{hint(name, names)}")
        try:
            return {int(row["cluster"]): row[column] for row in table}
        except ValueError as error:
            raise ValueError(f"table {path!r}: {error}") from error
