"""Batches of one pair, again and again: no variance, a loss of ln B, and no right answer."""

from __future__ import annotations

import dataclasses

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Constant:
    """All places of a batch hold its first pair.

    Attributes:
      start: first step.
      count: number of steps; 0 for none.
    """

    start: int = 0
    count: int = 0

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        steps = _plan.span(place, "constant", self.start, self.count)
        image, text, active = plan.image.copy(), plan.text.copy(), plan.active.copy()
        image[steps] = image[steps, :1]
        text[steps] = text[steps, :1]
        active[steps] = True
        return plan._replace(image=image, text=text, active=active)
