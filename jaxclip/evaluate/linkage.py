"""Record linkage: which pictures and texts are of one thing, by their pooled vectors."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.retrieval import check_captions
from jaxclip.shapes import check_shapes

# Cosine distances that are tried on the validation split.
GRID = np.round(np.arange(0.01, 0.405, 0.01), 2)
_TILE = 2048


@dataclasses.dataclass(frozen=True)
class Linkage(Evaluator):
    """Are records of one thing found to be of one thing?

    Arora et al. 2023, CLIPPINGS (arXiv:2304.03464): the unit vector of image_share I +
    (1 - image_share) T of each record (T of its first caption) is linked with all others within a
    cosine distance; what hangs together is one cluster (single link, DBSCAN with one point). Told
    are the adjusted Rand index against the labels, and how often the nearest other record is of the
    same label.

    Attributes:
      image_share: of the image; 1 for images alone, 0 for texts alone.
      distance: cosine distance within which records are linked; 0: chosen on ``validation_split``
        for the best index.
      validation_split: another split with labels; needed where ``distance`` is 0.
    """

    image_share: float = 0.5
    distance: float = 0.0
    validation_split: str = ""

    def metric_names(self) -> list[str]:
        return ["adjusted_rand_index", "nearest"]

    def check(self, data: Data) -> None:
        """Refuse options out of range, and splits without labels or captions."""
        if not 0 <= self.image_share <= 1 or not 0 <= self.distance <= 2:
            raise ValueError(
                f"image_share={self.image_share} must be in [0, 1], distance={self.distance} in "
                "[0, 2]"
            )
        splits = [data.split]
        if not self.distance:
            if not self.validation_split:
                raise ValueError(
                    "distance=0 is chosen on validation_split: name one, or a distance"
                )
            if self.validation_split == data.split:
                raise ValueError(f"validation_split={data.split!r} is the split that is judged")
            data.check_split(self.validation_split)
            splits.append(self.validation_split)
        for split in splits:
            sample = data.sample(split)
            if sample and all(label < 0 for label, _ in sample):
                raise ValueError(
                    f"the first {len(sample)} records of split {split!r} have no label"
                )
        if self.image_share < 1:
            check_captions(data)

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``adjusted_rand_index``, ``nearest``, ``distance``, ``num_examples`` and
        ``num_clusters``."""
        distance = self.distance
        if not distance:
            vectors, labels = self._pooled(model, data, self.validation_split)
            found = [adjusted_rand_index(clusters(vectors, d), labels) for d in GRID]
            distance = float(GRID[int(np.argmax(found))])
        vectors, labels = self._pooled(model, data, data.split)
        linked = clusters(vectors, distance)
        return {
            "adjusted_rand_index": adjusted_rand_index(linked, labels),
            "nearest": nearest_shares_label(vectors, labels),
            "distance": distance,
            "num_examples": len(labels),
            "num_clusters": len(np.unique(linked)),
        }

    def _pooled(self, model: Model, data: Data, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Vectors and labels of the records that have a label (and a caption, if it counts)."""
        images = data.images(model, split)
        counts = images.labels >= 0
        if self.image_share < 1:
            counts &= np.array([bool(texts) for texts in images.texts], bool)
        rows = np.flatnonzero(counts)
        vectors = self.image_share * images.embeddings[rows]
        if self.image_share < 1 and len(rows):
            texts = model.texts([images.texts[row][0] for row in rows])
            vectors = vectors + (1 - self.image_share) * texts
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1.0), images.labels[rows]


def clusters(vectors: np.ndarray, distance: float) -> np.ndarray:
    """Number of each row's cluster, int64[N]: rows within a cosine distance hang together.

    Args:
      vectors: float[N, D], unit rows.
      distance: 1 - cos up to which two rows are linked.

    Raises:
      ValueError: no rows of numbers.
    """
    check_shapes("clusters", vectors=(vectors, "N D"))
    # The smallest row that each is known to hang together with.
    root = np.arange(len(vectors))
    for start in range(0, len(vectors), _TILE):
        tile = slice(start, start + _TILE)
        near = vectors[tile] @ vectors.T >= 1.0 - distance
        near &= root[tile, None] != root
        one, other = np.nonzero(near)
        one += start
        while len(one):
            a, b = root[one], root[other]
            np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(root, above := root[root]):
                root = above
            apart = root[one] != root[other]
            one, other = one[apart], other[apart]
    return root


def adjusted_rand_index(found: np.ndarray, truth: np.ndarray) -> float:
    """Agreement of two partitions (Hubert and Arabie, 1985): 1 for equal ones, 0 by chance.

    Args:
      found: int[N].
      truth: int[N].

    Raises:
      ValueError: of different lengths.
    """
    check_shapes("adjusted_rand_index", found=(found, "N"), truth=(truth, "N"))
    _, a = np.unique(found, return_inverse=True)
    _, b = np.unique(truth, return_inverse=True)
    if not len(a):
        return float("nan")

    def pairs(counts: np.ndarray) -> float:
        return float(np.sum(counts * (counts - 1.0) / 2))

    both = pairs(np.unique(a * (b.max() + 1) + b, return_counts=True)[1])
    ours, theirs = pairs(np.bincount(a)), pairs(np.bincount(b))
    every = len(a) * (len(a) - 1) / 2
    expected = ours * theirs / every if every else 0.0
    best = (ours + theirs) / 2
    return 1.0 if best == expected else (both - expected) / (best - expected)


def nearest_shares_label(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Share of the rows whose nearest other row has their label, of those whose label another row
    has; NaN where there are none.

    Args:
      vectors: float[N, D], unit rows.
      labels: int[N].

    Raises:
      ValueError: of different lengths.
    """
    check_shapes("nearest_shares_label", vectors=(vectors, "N D"), labels=(labels, "N"))
    values, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    asked = counts[place] > 1
    if not len(values) or not asked.any():
        return float("nan")
    hits = []
    for start in range(0, len(vectors), _TILE):
        cosines = vectors[start : start + _TILE] @ vectors.T
        own = np.arange(len(cosines))
        cosines[own, own + start] = -np.inf
        hits.append(labels[np.argmax(cosines, axis=1)] == labels[start : start + _TILE])
    return float(np.mean(np.concatenate(hits)[asked]))
