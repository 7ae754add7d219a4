"""Zero-shot classification (Radford et al., 2021): images against averaged prompt embeddings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip.evaluate import class_names, encoding, ranking, templates
from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.class_names import ClassNames
from jaxclip.evaluate.templates import Templates
from jaxclip.shapes import check_shapes

_LOG = logging.getLogger(__name__)

OWN_TEMPLATES = "own"


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Which of the class names describes this picture?

    Attributes:
      class_names: the classes that compete: ``""`` for the data set's own names, tidied; else as
        :func:`jaxclip.evaluate.class_names.resolve` takes them.
      templates: ``"own"`` for those that the data set brings, as CLIP_benchmark's do; else as
        :func:`jaxclip.evaluate.templates.resolve` takes them.
      ks: cut-offs: an image counts at k if its class is among the k best.
    """

    class_names: ClassNames = ""
    templates: Templates = "name"
    ks: Sequence[int] = (1, 5)

    def metric_names(self) -> list[str]:
        return [f"top{k}" for k in self.ks]

    def check(self, data: Data) -> None:
        """Refuse wrong options, and a split without labels or with labels that have no name."""
        ranking.check_cutoffs(self.ks)
        names = self.names(data)
        self.prompts(data)
        if data.split_classes(data.split) is not None:
            return
        known = data.class_names()
        # Nothing says which labels there are but the records themselves.
        labels = [label for label, _ in data.sample(data.split)]
        if labels and max(labels) < 0:
            raise ValueError(f"the first {len(labels)} records of {data.name} have no label")
        if known is not None and max(labels, default=0) >= len(known):
            raise ValueError(
                f"a record of {data.name} has label {max(labels)}, but there are only {len(known)} "
                "class names: labels count from 0, and each has a name"
            )
        if isinstance(self.class_names, str | Sequence) and max(labels, default=0) >= len(names):
            raise ValueError(
                f"a record of {data.name} has label {max(labels)}, but class_names has only "
                f"{len(names)} names"
            )

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``top1``, ``top5``, ``num_examples``, ``num_classes``; images of classes that do not
        compete do not count."""
        names = self.names(data)
        prompts = self.prompts(data)
        embedded = model.texts([prompt for each in prompts for prompt in each])
        classes = class_embeddings(embedded, [len(each) for each in prompts])
        images = data.images(model)
        place = {label: i for i, label in enumerate(names)}
        last = max([len(data.class_names() or ()) - 1, *names])
        unknown = int(np.sum(np.asarray(images.labels) > last))
        if unknown:
            _LOG.warning(
                "%s: %d of %d pictures have a label without a name; they do not count",
                data.name, unknown, len(images.labels),
            )  # fmt: skip
        labels = np.array([place.get(int(label), -1) for label in images.labels], np.int64)
        mine = encoding.share_of_work(len(labels))
        counts = classify(images.embeddings[mine], classes, labels[mine], ks=self.ks)
        correct = {k: encoding.sum_over_processes(count) for k, count in counts.correct.items()}
        total = Counts(correct, encoding.sum_over_processes(counts.examples))
        sizes = {"num_examples": total.examples, "num_classes": len(names)}
        return {**total.metrics(), **sizes}

    def names(self, data: Data) -> dict[int, str]:
        """The classes that compete: label -> name."""
        occurring = data.split_classes(data.split)
        return class_names.resolve(
            self.class_names, data.class_names(), occurring, what=f"data set {data.name!r}"
        )

    def prompts(self, data: Data) -> list[list[str]]:
        """The prompts of each class that competes, in the order of :meth:`names`."""
        given = self.templates
        if given == OWN_TEMPLATES:
            given = data.templates() or ()
            if not given:
                raise ValueError(
                    f"data set {data.name!r} brings no templates; give templates a set "
                    f"({', '.join(templates.TEMPLATES)}), a template or a file"
                )
        return templates.prompts(list(self.names(data).values()), templates.resolve(given))


class Counts(NamedTuple):
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


def class_embeddings(prompts: np.ndarray, counts: int | Sequence[int]) -> np.ndarray:
    """Average the embeddings of a class's prompts and normalise the average.

    Args:
      prompts: float[P, D], L2-normalised, the prompts of a class in a row.
      counts: number of prompts of each of C classes, or C if all have as many.

    Returns:
      float32[C, D], L2-normalised (zero where the prompts cancel out).

    Raises:
      ValueError: the prompts do not divide over the classes, or are no rows.
    """
    check_shapes("class_embeddings", prompts=(prompts, "P D"))
    if isinstance(counts, int):
        if counts < 1 or len(prompts) % counts:
            raise ValueError(f"{len(prompts)} prompts do not divide over {counts} classes")
        counts = [len(prompts) // counts] * counts
    sizes = np.asarray(counts, np.int64)
    if not len(sizes) or sizes.min() < 1 or sizes.sum() != len(prompts):
        raise ValueError(f"{len(prompts)} prompts are not what classes of {counts} have")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(np.asarray(prompts, np.float32), starts)
    mean = sums / sizes[:, None].astype(np.float32)
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
) -> Counts:
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
      :class:`Counts`.

    Raises:
      ValueError: a label that is no class, or arrays and cut-offs that do not fit.
    """
    ranking.check_cutoffs(ks)
    check_shapes(
        "classify",
        images=(images, "N D"),
        classes=(classes, "C D"),
        labels=(labels, "N"),
        mask=(mask, "N"),
    )
    labels = ranking.whole_numbers("classify", "labels", labels)
    keep = labels >= 0
    if mask is not None:
        keep &= np.asarray(mask, bool)
    labels = labels[keep]
    if labels.size and labels.max() >= len(classes):
        raise ValueError(f"label {labels.max()} is no class: there are {len(classes)} names")
    _, indices = ranking.top_k(np.asarray(images)[keep], classes, max(ks), **tiling)
    return Counts(ranking.hits_at(indices == labels[:, None], ks), len(labels))
