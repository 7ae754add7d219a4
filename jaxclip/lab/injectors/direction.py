"""A gradient that points somewhere else: a random direction, k times as long as the gradient."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Direction:
    """g ← g + k ‖g‖ u with u of unit length, uniform over the sphere of all parameters.

    Attributes:
      k: length of what is added, in lengths of the gradient.
      steps: at which steps, from 0.
      share: at this share of the steps from ``start`` on, drawn by the seed.
      start: first step that may be drawn.
    """

    k: float = 100.0
    steps: tuple[int, ...] = ()
    share: float = 0.0
    start: int = 0

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        at = _plan.chosen(place, "direction", self.steps, self.share, self.start)
        direction = np.where(at, np.float32(self.k), plan.direction)
        return plan._replace(direction=direction, active=plan.active | at)
