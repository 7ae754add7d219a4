"""Accuracy of the linear classifier that a run trains beside its towers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.linear_probe import labelled


@dataclasses.dataclass(frozen=True)
class ClassHead(Evaluator):
    """How often is the classifier of ``objective: class_head`` right?

    It reads unit embeddings (``features="image"``). A head on tokens is not evaluated here: use
    ``linear_probe`` for its tower.

    Attributes:
      term: name of the term in the run's ``objective``.
    """

    term: str = "class_head"

    def metric_names(self) -> list[str]:
        return ["top1"]

    def check(self, data: Data) -> None:
        """Refuse splits without labels."""
        sample = data.sample(data.split)
        if sample and all(label < 0 for label, _ in sample):
            raise ValueError(f"the first {len(sample)} records of {data.split!r} have no label")

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``top1``, ``num_examples``, and ``num_classes`` of the head.

        Raises:
          ValueError: the run has no such head, or it reads tokens.
        """
        head: Any = model.params.get("objective", {}).get(self.term)
        if head is None:
            raise ValueError(f"the run has no objective {self.term!r} whose head could be judged")
        if "norm" in head:
            raise ValueError(
                f"the head of {self.term!r} reads the tower's tokens, not its embedding; evaluate "
                "the tower by linear_probe"
            )
        features, labels = labelled(data.images(model))
        kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
        scores = features * kernel.shape[0] ** 0.5 @ kernel + bias
        hits = np.argmax(scores, axis=1) == labels
        return {
            "top1": float(hits.mean()) if len(hits) else float("nan"),
            "num_examples": len(hits),
            "num_classes": kernel.shape[1],
        }
