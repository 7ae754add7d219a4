"""Silent corruption of memory: one element of the parameters is 2^n times what it was."""

from __future__ import annotations

import dataclasses

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Bitflip:
    """w ← 2^n w for one element: what a flipped bit of the exponent does. The seed draws it.

    Attributes:
      exponent: n.
      steps: before which steps, from 0.
      path: pattern of the tensors' paths; of those that match one is drawn.
    """

    exponent: float = 8.0
    steps: tuple[int, ...] = ()
    path: str = "kernel$"

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        at = _plan.chosen(place, "bitflip", self.steps, 0.0, 0)
        where = _plan.generator(place, "bitflip").choice(_plan.tensors(place, "bitflip", self.path))
        weight = plan.weight.copy()
        weight[at, where] = 2.0**self.exponent
        return plan._replace(weight=weight, active=plan.active | at)
