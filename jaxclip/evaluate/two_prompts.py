"""A yes-or-no question by two prompts: are there clouds in this picture?"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.evaluate.base import Data, Evaluator, Model
from jaxclip.evaluate.inspection import rates_of
from jaxclip.evaluate.linear_probe import labelled
from jaxclip.evaluate.zero_shot import class_embeddings


@dataclasses.dataclass(frozen=True)
class TwoPrompts(Evaluator):
    """Does the picture show it, by a prompt for yes and one for no?

    Czerkawski et al. 2023 (arXiv:2308.00541) tell cloudy from clear satellite pictures so; their
    prompts are recalled: "a satellite image with clouds", "a satellite image with a clear sky".
    Several prompts of a side stand between semicolons and are averaged. ``linear_probe`` on the
    same split is their cheap tuning. Bands of 12 bits must become uint8 by a stated stretch before
    they are records.

    Attributes:
      yes: prompts of what is asked for.
      no: prompts of its absence.
      positive: label of the records that show it; all others with a label do not.
      threshold: cosine by which yes must be ahead of no.
    """

    yes: str = ""
    no: str = ""
    positive: int = 1
    threshold: float = 0.0

    def metric_names(self) -> list[str]:
        return ["accuracy", "true_positive_rate", "true_negative_rate"]

    def _prompts(self) -> list[list[str]]:
        sides = [[p.strip() for p in side.split(";") if p.strip()] for side in (self.yes, self.no)]
        if not all(sides):
            raise ValueError(f"yes={self.yes!r} and no={self.no!r} must both have a prompt")
        return sides

    def check(self, data: Data) -> None:
        """Refuse missing prompts, and a split without labels."""
        self._prompts()
        if self.positive < 0:
            raise ValueError(f"positive={self.positive} must be a label, 0 or more")
        sample = data.sample(data.split)
        if sample and all(label < 0 for label, _ in sample):
            raise ValueError(f"the first {len(sample)} records of {data.split!r} have no label")

    def evaluate(self, model: Model, data: Data) -> dict[str, float]:
        """``accuracy``, ``true_positive_rate``, ``true_negative_rate``, ``num_examples``,
        ``num_positive``."""
        sides = self._prompts()
        embedded = model.texts([prompt for side in sides for prompt in side])
        yes, no = class_embeddings(embedded, [len(side) for side in sides])
        images, labels = labelled(data.images(model))
        truth = labels == self.positive
        found = images @ (yes - no) > self.threshold
        rates = rates_of(found, truth)
        return {
            "accuracy": float(np.mean(found == truth)) if len(truth) else float("nan"),
            **dict(zip(("true_positive_rate", "true_negative_rate"), rates, strict=True)),
            "num_examples": len(truth),
            "num_positive": int(truth.sum()),
        }
