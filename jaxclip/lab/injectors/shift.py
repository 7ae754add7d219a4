"""A shift of the data, with nothing made up: one part of it up to a step, then the other."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Shift:
    """Batches are drawn from the first group of the data up to a step, from the others behind it.

    Groups are who drew the picture: with the built-in emoji it is Noto, then Twemoji.

    Attributes:
      start: first step with the new data.
    """

    start: int = 1000

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        _plan.span(place, "shift", self.start, 1)
        first = place.groups == place.groups[0]
        if first.all():
            raise ValueError("injector 'shift': the data have one group only; use another data set")
        old = _plan.draw_batches(place, np.flatnonzero(first), range(self.start))
        new = _plan.draw_batches(place, np.flatnonzero(~first), range(self.start, place.steps))
        batches, active = np.concatenate([old, new]), plan.active.copy()
        active[self.start] = True
        return plan._replace(image=batches, text=batches.copy(), active=active)
