"""A loss scale that overflows: a tensor's gradient is NaN."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Nonfinite:
    """g ← NaN for some tensors at some steps: what the train step and the rules have to skip.

    Attributes:
      steps: at which steps, from 0.
      path: pattern of the tensors' paths.
    """

    steps: tuple[int, ...] = ()
    path: str = "^image/patch_embedding"

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        at = _plan.chosen(place, "nonfinite", self.steps, 0.0, 0)
        where = _plan.tensors(place, "nonfinite", self.path)
        gradient = plan.gradient.copy()
        gradient[np.ix_(at, where)] = np.nan
        return plan._replace(gradient=gradient, active=plan.active | at)
