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

    It reads what the head was trained on: unit embeddings (``features="image"``), or the mean of
    the patches' tokens (``"image_tokens"``, FT-CLIP's).

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
          ValueError: the run has no such head, or it reads tokens that the model does not give.
        """
        head: Any = model.params.get("objective", {}).get(self.term)
        if head is None:
            raise ValueError(f"the run has no objective {self.term!r} whose head could be judged")
        on_tokens = "norm" in head
        if on_tokens and model.encode_tokens is None:
            raise ValueError(
                f"the head of {self.term!r} reads the tokens of all patches, which this model does "
                "not give (evaluate.token_reduction leaves fewer)"
            )
        features, labels = labelled(data.images(model, tokens=on_tokens))
        kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
        if on_tokens:
            features = _normed(features, head["norm"])
        else:
            features = features * kernel.shape[0] ** 0.5
        scores = features @ kernel + bias
        hits = np.argmax(scores, axis=1) == labels
        return {
            "top1": float(hits.mean()) if len(hits) else float("nan"),
            "num_examples": len(hits),
            "num_classes": kernel.shape[1],
        }


def _normed(x: np.ndarray, norm: Any) -> np.ndarray:
    """The layer norm of a head on tokens, float32[N, C]."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-6)
    normed: np.ndarray = centred / deviation * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    return normed
