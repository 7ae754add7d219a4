"""Image-text retrieval with several captions an image, and captions that several images share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.evaluate import encoding, ranking
from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.shapes import check_shapes

_DIRECTIONS = ("image_to_text", "text_to_image")


@dataclasses.dataclass(frozen=True)
class Retrieval(Evaluator):
    """Which caption belongs to this picture, which picture to this caption?

    Attributes:
      ks: cut-offs.
    """

    ks: Sequence[int] = (1, 5, 10)

    def metric_names(self) -> list[str]:
        return [f"{direction}_r{k}" for direction in _DIRECTIONS for k in self.ks]

    def check(self, data: Data) -> None:
        """Refuse wrong cut-offs and a split without captions."""
        ranking.check_cutoffs(self.ks)
        check_captions(data)

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """Recall in both directions among the images and distinct captions of the split, and
        ``num_images``, ``num_captions``."""
        images = data.images(model)
        captions = captions_of(images.texts, data)
        embedded = model.texts(captions.texts)
        found: dict[str, float] = {}
        for direction, ask, queries in zip(
            _DIRECTIONS,
            (image_to_text, text_to_image),
            (len(images.positions), len(captions.texts)),
            strict=True,
        ):
            counts = ask(
                images.embeddings,
                embedded,
                captions.pairs,
                ks=self.ks,
                queries=encoding.share_of_work(queries),
            )
            hits = {k: encoding.sum_over_processes(count) for k, count in counts.hits.items()}
            total = Recall(hits, encoding.sum_over_processes(counts.queries))
            found |= total.metrics(direction)
        sizes = {"num_images": len(images.positions), "num_captions": len(captions.texts)}
        return {**found, **sizes}


class Captions(NamedTuple):
    """The captions of a split, each distinct string once.

    Attributes:
      texts: C distinct strings, in order of first appearance.
      pairs: int64[P, 2] distinct (image, caption) pairs: image i has caption c.
    """

    texts: list[str]
    pairs: np.ndarray


class Recall(NamedTuple):
    """Counts of one direction of retrieval; integers, so that parts can be added up.

    Attributes:
      hits: ``{k: number of queries with a right answer among the k best}``.
      queries: number of queries.
    """

    hits: dict[int, int]
    queries: int

    def metrics(self, direction: str) -> dict[str, float]:
        """``{"<direction>_r1": share, …}``; NaN without queries."""
        return {
            f"{direction}_r{k}": count / self.queries if self.queries else float("nan")
            for k, count in self.hits.items()
        }


def check_captions(data: Data) -> None:
    """Raise ValueError if none of the first records of the split has a caption."""
    sample = data.sample(data.split)
    if sample and not any(count for _, count in sample):
        raise ValueError(f"the first {len(sample)} records of {data.name} have no caption")


def captions_of(texts: Sequence[Sequence[str]], data: Data) -> Captions:
    """As :func:`index_captions`; ValueError, naming the data, if there is not a single caption."""
    captions = index_captions(texts)
    if not captions.texts:
        raise ValueError(f"split {data.split!r} of data set {data.name!r} has no captions")
    return captions


def index_captions(texts: Sequence[Sequence[str]]) -> Captions:
    """Number the distinct captions and list who owns which.

    Args:
      texts: the captions of each image; may be empty.

    Returns:
      :class:`Captions`.
    """
    numbers: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    for image, captions in enumerate(texts):
        for caption in captions:
            pairs[image, numbers.setdefault(caption, len(numbers))] = None
    return Captions(list(numbers), np.array(list(pairs), np.int64).reshape(-1, 2))


def image_to_text(
    images: np.ndarray,
    captions: np.ndarray,
    pairs: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    queries: np.ndarray | None = None,
    **tiling: Any,
) -> Recall:
    """Images look for their captions among all distinct captions.

    A query is an image that has a caption; it is a hit at k if any of its captions is among the k
    best. A string that several images own is right for each of them.

    Args:
      images: float32[N, D] image embeddings.
      captions: float32[C, D] embeddings of the distinct captions.
      pairs: int[P, 2] (image, caption) of :class:`Captions`.
      ks: cut-offs.
      queries: int[Q], the images that ask (default: all); for splitting the work.
      **tiling: ``query_tile``, ``gallery_tile``, ``devices`` of :func:`ranking.top_k`.

    Returns:
      :class:`Recall` counts.

    Raises:
      ValueError: arrays that do not fit, or a pair of what is not there.
    """
    pairs = _checked_pairs("image_to_text", images, captions, pairs)
    return _recall(images, captions, pairs, ks, queries, tiling)


def text_to_image(
    images: np.ndarray,
    captions: np.ndarray,
    pairs: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    queries: np.ndarray | None = None,
    **tiling: Any,
) -> Recall:
    """Captions look for their image among all images.

    A query is a distinct caption; it is a hit at k if any image that owns it is among the k best.
    Images without captions are in the gallery, too.

    Args:
      images: float32[N, D] image embeddings.
      captions: float32[C, D] embeddings of the distinct captions.
      pairs: int[P, 2] (image, caption) of :class:`Captions`.
      ks: cut-offs.
      queries: int[Q], the captions that ask (default: all); for splitting the work.
      **tiling: ``query_tile``, ``gallery_tile``, ``devices`` of :func:`ranking.top_k`.

    Returns:
      :class:`Recall` counts.

    Raises:
      ValueError: arrays that do not fit, or a pair of what is not there.
    """
    pairs = _checked_pairs("text_to_image", images, captions, pairs)
    return _recall(captions, images, pairs[:, ::-1], ks, queries, tiling)


def owned(rows: np.ndarray, retrieved: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether what was retrieved for a query belongs to it.

    Args:
      rows: int[Q], the queries' numbers.
      retrieved: int[Q, K], gallery numbers.
      pairs: int[P, 2], (query, gallery) numbers that belong together.

    Returns:
      bool[Q, K].
    """
    base = 1 + max(int(retrieved.max(initial=0)), int(pairs[:, 1].max(initial=0)))
    keys = np.asarray(rows, np.int64)[:, None] * base + retrieved
    return np.isin(keys, pairs[:, 0].astype(np.int64) * base + pairs[:, 1])


def _checked_pairs(what: str, images: Any, captions: Any, pairs: Any) -> np.ndarray:
    """The pairs as int64[P, 2].

    Raises:
      ValueError: arrays of other shapes, or a pair of an image or a caption that there is not.
    """
    check_shapes(what, images=(images, "N D"), captions=(captions, "C D"))
    given = np.asarray(pairs)
    if given.size and (given.ndim != 2 or given.shape[1] != 2):
        raise ValueError(f"{what}: pairs has shape {list(given.shape)}, where [P, 2] is wanted")
    given = given.reshape(-1, 2)
    if given.size and given.min() < 0:
        raise ValueError(f"{what}: pairs has {given.min()}; images and captions count from 0")
    columns = [
        ranking.whole_numbers(what, f"pairs[:, {i}] ({name})", given[:, i], len(rows))
        for i, (name, rows) in enumerate((("images", images), ("captions", captions)))
    ]
    return np.stack(columns, axis=1)


def _recall(
    asking: np.ndarray,
    gallery: np.ndarray,
    pairs: np.ndarray,
    ks: Sequence[int],
    queries: np.ndarray | None,
    tiling: dict[str, Any],
) -> Recall:
    ranking.check_cutoffs(ks)
    rows = np.unique(pairs[:, 0])
    if queries is not None:
        rows = np.intersect1d(rows, queries)
    if not len(rows):
        return Recall(dict.fromkeys(ks, 0), 0)
    _, indices = ranking.top_k(np.asarray(asking)[rows], gallery, max(ks), **tiling)
    return Recall(ranking.hits_at(owned(rows, indices, pairs), ks), len(rows))
