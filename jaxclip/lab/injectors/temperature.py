"""The loss's scale is wrong: ``logit_scale`` is set to a value at one step."""

from __future__ import annotations

import dataclasses
import math

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class Temperature:
    """log of the logits' multiplier ← ``value``: gradients of all layers are that much larger.

    Attributes:
      value: the log; ln 100, CLIP's limit, by default.
      steps: before which steps, from 0.
    """

    value: float = math.log(100.0)
    steps: tuple[int, ...] = ()

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        at = _plan.chosen(place, "temperature", self.steps, 0.0, 0)
        logit_scale = plan.logit_scale.copy()
        logit_scale[at] = self.value
        return plan._replace(logit_scale=logit_scale, active=plan.active | at)
