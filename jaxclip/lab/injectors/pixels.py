"""Pictures that were decoded wrongly: a batch of noise."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The pictures of a batch are uniform noise, each another; the captions stay.

    Attributes:
      start: first step.
      count: number of steps; 0 for none.
    """

    start: int = 0
    count: int = 0

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        steps = _plan.span(place, "pixels", self.start, self.count)
        noise, active = plan.noise.copy(), plan.active.copy()
        noise[steps] = np.float32(1)
        active[steps] = True
        return plan._replace(noise=noise, active=active)
