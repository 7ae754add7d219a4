"""Clusters of vectors: k-means on a sample, then the nearest centroid of every record."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np

from jaxclip.curate import kmeans, vectors
from jaxclip.curate.flow import Flow, concatenate
from jaxclip.curate.rows import Rows
from jaxclip.curate.step import Step, check_one_vector, check_range
from jaxclip.curate.store import INDEX, Stored

CENTROIDS = "centroids"


@dataclasses.dataclass(frozen=True)
class Cluster(Step):
    """Columns ``cluster`` int32[n] and ``centroid_distance`` float32[n], 1 - cosine.

    Attributes:
      k: number of clusters.
      on: column with vectors.
      sample: points for each centroid that k-means runs on, drawn by the hash of keys.
      iterations: of k-means.
    """

    k: int = 0
    on: str = "image"
    sample: int = 256
    iterations: int = 20

    reasons: ClassVar[tuple[str, ...]] = ()

    def wants(self) -> tuple[str, ...]:
        return (self.on,)

    def makes(self) -> tuple[str, ...]:
        return "cluster", "centroid_distance"

    def check(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: give a number of clusters")
        check_range("sample", self.sample, 1)
        check_range("iterations", self.iterations, 1)
        check_one_vector("on", self.on)

    def run(self, flow: Flow) -> None:
        count = flow.count()
        if count < self.k:
            raise ValueError(f"step 'cluster': k={self.k} needs as many records; {count} are left")
        share = min(1.0, 1.05 * self.k * self.sample / count)
        salt = flow.salt("k-means")
        drawn = flow.total("sample", functools.partial(self.draw, salt, share), concatenate)

        def fit() -> dict[str, np.ndarray]:
            found = drawn.arrays()
            # In the order of hashes: that of the records in their files does not matter.
            points = vectors.unit(found["points"][np.argsort(found["hash"], kind="stable")])
            return {
                CENTROIDS: kmeans.fit(points, self.k, iterations=self.iterations, seed=flow.seed)
            }

        centroids = flow.save(CENTROIDS, fit)
        flow.shared[CENTROIDS] = centroids
        flow.columns("assigned", functools.partial(self.assign, centroids))
        sizes = flow.total("sizes", self.sizes).arrays()["sizes"]
        quantiles = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1), method="nearest")
        rows = [[name, int(q)] for name, q in
                zip(("least", "25%", "median", "75%", "most"), quantiles, strict=True)]  # fmt: skip
        flow.note("sizes of clusters", {"head": ["", "records"], "rows": rows})

    def draw(self, salt: str, share: float, rows: Rows) -> dict[str, np.ndarray]:
        """The sample's vectors."""
        chosen = rows.uniforms(salt) < share if share < 1 else np.ones(len(rows), bool)
        return {
            "points": rows[self.on][chosen],
            "hash": rows.hashes(salt)[chosen],
            INDEX: rows.index[chosen],
        }

    def assign(self, stored: Stored, rows: Rows) -> dict[str, Any]:
        """The nearest centroid of each record."""
        points = vectors.unit(rows[self.on])
        cluster, cosine = kmeans.assign(points, stored.arrays()[CENTROIDS])
        return {"cluster": cluster, "centroid_distance": (1 - cosine).astype(np.float32)}

    def sizes(self, rows: Rows) -> dict[str, np.ndarray]:
        """Records in each cluster."""
        return {"sizes": np.bincount(rows["cluster"], minlength=self.k)}
