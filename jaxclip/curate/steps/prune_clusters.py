"""Density-based pruning: clusters that are spread out and far from others keep more."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import select
from jaxclip.curate.flow import Flow
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_range
from jaxclip.curate.steps.cluster import CENTROIDS
from jaxclip.curate.store import REASON, Stored

# Distances are summed as whole numbers, so that no order of adding matters.
_UNIT = 2.0**32


@dataclasses.dataclass(frozen=True)
class PruneClusters(Step):
    """Keep a quota of each cluster by its complexity (2401.04578); deduplicate before.

    Complexity is the mean distance of a cluster's records to its centroid times that of the
    centroid to its nearest others; quotas are proportional to the softmax of it, as far as clusters
    have so many, and at least ``least_share`` of an equal share. In each cluster the records
    farthest from the centroid stay.

    Attributes:
      share: of the records that is kept.
      count: how many, in place of a share.
      tau: temperature of the softmax over complexities; large: equal quotas.
      neighbours: other centroids that count.
      least_share: of n / k, that a cluster keeps at least.
    """

    share: float = 0.0
    count: int = 0
    tau: float = 0.5
    neighbours: int = 20
    least_share: float = 0.5

    reasons: ClassVar[tuple[str, ...]] = ("beyond_quota",)

    def wants(self) -> tuple[str, ...]:
        return "cluster", "centroid_distance"

    def check(self) -> None:
        if bool(self.share) == bool(self.count):
            raise ValueError(f"give either share or count, not {self.share} and {self.count}")
        check_range("share", self.share, 0, 1)
        check_range("count", self.count, 0)
        check_range("tau", self.tau, 1e-6)
        check_range("neighbours", self.neighbours, 1)
        check_range("least_share", self.least_share, 0, 1)

    def run(self, flow: Flow) -> None:
        centroids = flow.shared[CENTROIDS].arrays()[CENTROIDS]
        k = len(centroids)
        sums = flow.total("sums", functools.partial(self.sums, k)).arrays()
        intra = sums["distance"] / _UNIT / np.maximum(sums["size"], 1)
        weight = complexity(np.where(sums["size"] > 0, intra, np.nan), centroids, self.neighbours)

        def wanted(sizes: np.ndarray) -> np.ndarray:
            n = self.count or int(self.share * sizes.sum() + 1e-9)
            real = quotas(sizes, softmax(weight / self.tau), n, self.least_share)
            return whole(real, min(n, int(sizes.sum())))

        found = select.thresholds(flow, "quota", self.values, wanted, k)
        flow.decide(functools.partial(self.verdict, flow.salt("ties"), found))
        kept = found.arrays()
        order = np.argsort(-weight, kind="stable")
        order = np.concatenate([order[:5], order[-5:]]) if k > 10 else order
        rows = [[int(j), float(weight[j]), int(kept["count"][j]), int(kept["wanted"][j])]
                for j in order]  # fmt: skip
        head = ["cluster", "complexity", "before", "after"]
        flow.note("clusters by complexity", {"head": head, "rows": rows})

    def sums(self, k: int, rows: Rows) -> dict[str, np.ndarray]:
        """Sizes of the clusters and sums of distances in them."""
        units = np.rint(rows["centroid_distance"].astype(np.float64) * _UNIT).astype(np.int64)
        total = np.zeros(k, np.int64)
        np.add.at(total, rows["cluster"], units)
        return {"distance": total, "size": np.bincount(rows["cluster"], minlength=k)}

    def values(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Cluster and distance of each record."""
        return rows["cluster"].astype(np.int64), rows["centroid_distance"]

    def verdict(self, salt: str, found: Stored, rows: Rows) -> dict[str, Any]:
        """What is said of each record."""
        return {REASON: ~select.is_above(rows, salt, found, *self.values(rows))}


def complexity(intra: np.ndarray, centroids: np.ndarray, neighbours: int) -> np.ndarray:
    """float64[k]: d_intra times d_inter; the mean of the others where it is undefined.

    Args:
      intra: float64[k], mean distance to the centroid; NaN for an empty cluster.
      centroids: float32[k, D] of unit length.
      neighbours: nearest other centroids that d_inter is the mean over.
    """
    k = len(centroids)
    if k == 1:
        return np.nan_to_num(intra)
    nearest = np.empty(k)
    for start in range(0, k, 4096):
        distance = 1 - centroids[start : start + 4096].astype(np.float64) @ centroids.T
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        few = min(neighbours, k - 1)
        nearest[start + rows] = np.partition(distance, few - 1, axis=1)[:, :few].mean(axis=1)
    found = intra * nearest
    return np.where(np.isnan(found), np.nanmean(found), found)


def softmax(logits: np.ndarray) -> np.ndarray:
    """float64[k] that sums to 1."""
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def quotas(sizes: np.ndarray, p: np.ndarray, n: int, least_share: float = 0.5) -> np.ndarray:
    """The numbers x that are next to p n, with sum n and lower <= x <= size.

    The paper's quadratic programme, min |x|^2 / 2 - n p x, is a projection: x = clip(p n - m,
    lower, size) for the m that gives the sum.

    Args:
      sizes: int64[k].
      p: float64[k], sums to 1.
      n: how many are kept; at most sizes.sum() can be.
      least_share: lower is this share of n / k, at most size - 1.

    Returns:
      float64[k].
    """
    k = len(sizes)
    lower = np.clip(np.minimum(least_share * n / k, sizes - 1), 0, None)
    n = int(np.clip(n, lower.sum(), sizes.sum()))
    low, high = float((p * n - sizes).min()) - 1, float((p * n - lower).max()) + 1
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(p * n - middle, lower, sizes).sum() > n:
            low = middle
        else:
            high = middle
    return np.clip(p * n - (low + high) / 2, lower, sizes)


def whole(real: np.ndarray, total: int) -> np.ndarray:
    """int64[k] next to the numbers, with a sum: the largest remainders are rounded up."""
    floor = np.floor(real + 1e-9).astype(np.int64)
    rest = int(np.clip(total - floor.sum(), 0, len(real)))
    floor[np.argsort(floor - real, kind="stable")[:rest]] += 1
    return floor
