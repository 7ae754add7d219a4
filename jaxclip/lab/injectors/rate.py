"""A learning rate that is k times too high for some steps."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Rate:
    """lr ← k lr: overshoot, growth of features.

    Attributes:
      k: the factor.
      start: first step.
      count: number of steps; 0 for none.
    """

    k: float = 10.0
    start: int = 0
    count: int = 0

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        steps = _plan.span(place, "rate", self.start, self.count)
        rate, active = plan.rate.copy(), plan.active.copy()
        rate[steps] *= np.float32(self.k)
        active[steps] = True
        return plan._replace(rate=rate, active=active)
