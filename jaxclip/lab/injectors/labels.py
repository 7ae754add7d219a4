"""A poisoned batch: every picture has the caption of another one."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Labels:
    """The captions of a batch are moved on by one place.

    Attributes:
      start: first step.
      count: number of steps; 0 for none.
      share: besides, this share of the steps from ``start`` on, drawn by the seed.
    """

    start: int = 0
    count: int = 0
    share: float = 0.0

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        steps = _plan.chosen(place, "labels", (), self.share, self.start)
        steps[_plan.span(place, "labels", self.start, self.count)] = True
        text, active = plan.text.copy(), plan.active.copy()
        text[steps] = np.roll(text[steps], 1, axis=1)
        active[steps] = True
        return plan._replace(text=text, active=active)
