"""Zero-shot classification (Radford et al., 2021): images against averaged prompt embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.evaluate import ranking


class ZeroShot(NamedTuple):
    """Counts of a zero-shot classification; integers, so that parts can be added up.

    Attributes:
      correct: ``{k: number of images whose class is among the k best}``.
      examples: number of labelled images.
    """

    correct: dict[int, int]
    examples: int

    def metrics(self) -> dict[str, float]:
        """``{"top1": share, …}``; NaN without examples."""
        return {
            f"top{k}": count / self.examples if self.examples else float("nan")
            for k, count in self.correct.items()
        }


def class_embeddings(prompts: np.ndarray, num_classes: int) -> np.ndarray:
    """Average the embeddings of a class's prompts and normalise the average.

    Args:
      prompts: float[num_classes * T, D], L2-normalised, the T prompts of a class in a row.
      num_classes: C.

    Returns:
      float32[C, D], L2-normalised (zero where the prompts cancel out).

    Raises:
      ValueError: the number of prompts is not a multiple of the number of classes.
    """
    if num_classes < 1 or len(prompts) % num_classes:
        raise ValueError(f"{len(prompts)} prompts do not divide over {num_classes} classes")
    mean = np.asarray(prompts, np.float32).reshape(num_classes, -1, prompts.shape[-1]).mean(axis=1)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    return mean / np.where(norm > 0, norm, 1.0)


def classify(
    images: np.ndarray,
    classes: np.ndarray,
    labels: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5),
    mask: np.ndarray | None = None,
    **tiling: Any,
) -> ZeroShot:
    """Count the images whose class is among the k with the largest inner products.

    Of equal scores the class with the lower index ranks first, NaN last (see
    :func:`jaxclip.evaluate.ranking.top_k`).

    Args:
      images: float32[N, D] image embeddings.
      classes: float32[C, D] class embeddings.
      labels: int[N] class of each image; negative = has none, not counted.
      ks: cut-offs.
      mask: bool[N], False for rows that are no examples.
      **tiling: ``query_tile``, ``gallery_tile``, ``devices`` of :func:`ranking.top_k`.

    Returns:
      :class:`ZeroShot` counts.

    Raises:
      ValueError: a label that is no class.
    """
    labels = np.asarray(labels)
    keep = labels >= 0
    if mask is not None:
        keep &= np.asarray(mask, bool)
    labels = labels[keep]
    if labels.size and labels.max() >= len(classes):
        raise ValueError(f"label {labels.max()} is no class: there are {len(classes)} names")
    _, indices = ranking.top_k(np.asarray(images)[keep], classes, max(ks), **tiling)
    return ZeroShot(ranking.hits_at(indices == labels[:, None], ks), len(labels))
