"""SemDeDup: records of a cluster whose vectors are nearly the same; one of each stays."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import kmeans, vectors
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_one_vector, check_range
from jaxclip.curate.store import INDEX, REASON

_TILE = 4096


@dataclasses.dataclass(frozen=True)
class SemanticDuplicates(Step):
    """Drop records that are too close to one before them in their cluster (SemDeDup, 2303.09540).

    Within a cluster the records farthest from the centroid come first (of equally far ones, by a
    hash of their keys). A record goes if its largest cosine to one before it is more than 1 -
    ``eps``, which is kept as column ``max_similarity``: so another eps, or a share by ``top`` with
    ``lowest=True``, costs no second comparison.

    Attributes:
      eps: how close is too close; the paper's .06 to .07 halve LAION.
      on: column with vectors.
      greedy: compare only with those that stay: chains of neighbours lose fewer.
      largest: clusters of more records are split before records are compared.
    """

    eps: float = 0.05
    on: str = "image"
    greedy: bool = False
    largest: int = 200_000

    reasons: ClassVar[tuple[str, ...]] = ("semantic_duplicate",)

    def wants(self) -> tuple[str, ...]:
        return "cluster", self.on

    def makes(self) -> tuple[str, ...]:
        return ("max_similarity",)

    def check(self) -> None:
        check_range("eps", self.eps, 0, 2)
        check_range("largest", self.largest, 2)
        check_one_vector("on", self.on)

    def run(self, flow: Flow) -> None:
        flow.group(
            "compared", self.emit, self.settle,
            fill={"max_similarity": np.float32(-1), "_is_near": False},
        )  # fmt: skip
        flow.decide(self.verdict)

    def emit(self, rows: Rows) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Each record by its cluster."""
        said = {
            INDEX: rows.index,
            "vector": rows[self.on],
            "distance": rows["centroid_distance"],
            "hash": rows.hashes("semantic_duplicates"),
        }
        return rows["cluster"].astype(np.uint64), said

    def settle(
        self, keys: np.ndarray, starts: np.ndarray, said: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The largest cosine of each record to one before it in its cluster."""
        similarity = np.full(len(said[INDEX]), -1, np.float32)
        near = np.zeros(len(similarity), bool)
        for first, end in itertools.pairwise(starts):
            part = slice(first, end)
            # In float32: rounding of the distance must not decide the order of equal ones.
            order = np.lexsort((said["hash"][part], -said["distance"][part]))
            points = vectors.unit(said["vector"][part][order])
            for chosen in self._split(points):
                most, drop = compare(points[chosen], self.eps, self.greedy)
                similarity[first + order[chosen]], near[first + order[chosen]] = most, drop
        return {INDEX: said[INDEX], "max_similarity": similarity, "_is_near": near}

    def _split(self, points: np.ndarray) -> list[np.ndarray]:
        if len(points) <= self.largest:
            return [np.arange(len(points))]
        parts = -(-2 * len(points) // self.largest)
        sample = points[:: max(1, len(points) // (64 * parts))]
        cluster, _ = kmeans.assign(
            points, kmeans.fit(sample, parts, iterations=10, assign=kmeans.assign)
        )
        return [np.flatnonzero(cluster == each) for each in range(parts)]

    def verdict(self, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        return {REASON: rows["_is_near"]}


def compare(points: np.ndarray, eps: float, greedy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Largest cosine of each point to one before it, and who is to go.

    Args:
      points: float32[m, D] of unit length, in the order in which they are preferred.
      eps: a cosine of more than 1 - eps is too close.
      greedy: only points that stay count.

    Returns:
      float32[m] (-1 for the first) and bool[m].
    """
    most = np.full(len(points), -1, np.float32)
    drop = np.zeros(len(points), bool)
    for start in range(0, len(points), _TILE):
        mine = slice(start, min(start + _TILE, len(points)))
        for other in range(0, start, _TILE):
            cosines = points[mine] @ points[other : other + _TILE].T
            if greedy:
                cosines[:, drop[other : other + _TILE]] = -1
            most[mine] = np.maximum(most[mine], cosines.max(axis=1))
        cosines = points[mine] @ points[mine].T
        cosines = np.where(np.tri(len(cosines), k=-1, dtype=bool), cosines, -1)
        if not greedy:
            most[mine] = np.maximum(most[mine], cosines.max(axis=1))
            drop[mine] = most[mine] > 1 - eps
            continue
        for row in range(len(cosines)):
            before = cosines[row, :row][~drop[mine][:row]]
            place = start + row
            most[place] = max(most[place], before.max(initial=-1))
            drop[place] = most[place] > 1 - eps
    return most, drop
