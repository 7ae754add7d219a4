"""The standard spike: the whole gradient, or that of some tensors, is k times as large."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Scale:
    """g ← k g at some steps.

    Adam's first moment then points along one batch for 1 / (1 - β1) steps, and its second keeps
    steps short for long after.

    Attributes:
      k: the factor.
      steps: at which steps, from 0.
      share: at this share of the steps from ``start`` on, drawn by the seed.
      start: first step that may be drawn.
      path: pattern of the tensors' paths; empty for all.
    """

    k: float = 100.0
    steps: tuple[int, ...] = ()
    share: float = 0.0
    start: int = 0
    path: str = ""

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        at = _plan.chosen(place, "scale", self.steps, self.share, self.start)
        where = _plan.tensors(place, "scale", self.path)
        gradient = plan.gradient.copy()
        gradient[np.ix_(at, where)] *= np.float32(self.k)
        return plan._replace(gradient=gradient, active=plan.active | at)
