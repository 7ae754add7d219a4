"""Classes by the most similar of a few examples of each: inspection in manufacturing, say."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.linear_probe import labelled
from jaxclip.shapes import check_shapes


@dataclasses.dataclass(frozen=True)
class Inspection(Evaluator):
    """Is this part sound, by its most similar examples?

    Megahed et al. 2025 (arXiv:2501.12596): the score of a class is the largest cosine with one of
    its examples in a bank (50 to 100 of each in the paper, OpenAI's ViT-L/14), and the class with
    the best score is told. Of equal scores the lower class number wins. The authors' calibration of
    the scores (isotonic, Platt, conformal sets) is not here: what :func:`scores` gives are no
    probabilities.

    Attributes:
      bank_split: split of the examples.
      bank_size: examples of each class, drawn by ``seed``; 0 for all.
      positive: label whose recall is the sensitivity ("defective"); -1 for the largest label.
      seed: of the draw.
    """

    bank_split: str = "train"
    bank_size: int = 0
    positive: int = -1
    seed: int = 0

    def metric_names(self) -> list[str]:
        return ["accuracy", "sensitivity", "specificity"]

    def check(self, data: Data) -> None:
        """Refuse options out of range, and splits that are missing, the same or without labels."""
        if self.bank_size < 0 or self.positive < -1:
            raise ValueError(
                f"bank_size={self.bank_size} must not be negative, positive={self.positive} a "
                "label, or -1 for the largest"
            )
        data.check_split(self.bank_split)
        if self.bank_split == data.split:
            raise ValueError(
                f"bank_split={self.bank_split!r} is the split that is judged: each picture would "
                "find itself; name another one"
            )
        for split in (self.bank_split, data.split):
            sample = data.sample(split)
            if sample and all(label < 0 for label, _ in sample):
                raise ValueError(
                    f"the first {len(sample)} records of split {split!r} have no label"
                )

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``accuracy``, ``sensitivity`` (share of the positives that are found), ``specificity``
        (share of the others that are not called positive), ``num_examples``, ``num_bank``,
        ``num_classes``."""
        features, labels = labelled(data.images(model, self.bank_split))
        chosen = draw(labels, self.bank_size, self.seed)
        bank, known = features[chosen], labels[chosen]
        classes = np.unique(known)
        asked, truth = labelled(data.images(model))
        found = classes[np.argmax(scores(asked, bank, known), axis=1)]
        positive = int(classes[-1]) if self.positive < 0 else self.positive
        rates = rates_of(found == positive, truth == positive)
        return {
            "accuracy": float(np.mean(found == truth)) if len(truth) else float("nan"),
            **dict(zip(("sensitivity", "specificity"), rates, strict=True)),
            "num_examples": len(truth),
            "num_bank": len(known),
            "num_classes": len(classes),
        }


def scores(images: np.ndarray, bank: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The largest cosine with an example of each class: float[N, C], classes ascending.

    Args:
      images: float[N, D], unit rows.
      bank: float[M, D], unit rows.
      labels: int[M], of the bank.

    Raises:
      ValueError: the bank is empty, or shapes that do not fit.
    """
    check_shapes("scores", images=(images, "N D"), bank=(bank, "M D"), labels=(labels, "M"))
    if not len(bank):
        raise ValueError("the bank of examples is empty; nothing can be compared with it")
    cosines = images @ bank.T
    classes = np.unique(labels)
    return np.stack([cosines[:, labels == label].max(axis=1) for label in classes], axis=1)


def draw(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """int[n]: places of ``size`` examples of each class of int[N], ascending; all for size 0.

    The draw for a size is a part of that for a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == label][: size or None] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)


def rates_of(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """True positive and true negative rate, NaN where there are none.

    Args:
      found: bool[N], called positive.
      truth: bool[N], is positive.
    """
    return tuple(
        float(np.mean(found[truth == side] == side)) if np.any(truth == side) else float("nan")
        for side in (True, False)
    )  # type: ignore[return-value]
