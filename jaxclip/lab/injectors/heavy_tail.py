"""Noise of heavy tails in the gradient: Student's t, whose variance is infinite for df <= 2."""

from __future__ import annotations

import dataclasses

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class HeavyTail:
    """g ← g + k ‖g‖ / √n z, each of the n elements of z drawn from Student's t.

    With k = 1 the noise of an element is of the size of the gradient's own (their root mean square
    is ‖g‖ / √n), but for the tails (Schaipp et al., 2024, arXiv:2402.12828, have such noise).

    Attributes:
      k: size of the noise.
      df: degrees of freedom: 1 is Cauchy's, above 2 there is a variance.
      start: first step.
      count: number of steps; -1 for all that follow, 0 for none.
    """

    k: float = 1.0
    df: float = 1.5
    start: int = 0
    count: int = -1

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        if self.df <= 0:
            raise ValueError(f"injector 'heavy_tail': df={self.df} must be positive")
        count = place.steps - self.start if self.count == -1 else self.count
        steps = _plan.span(place, "heavy_tail", self.start, count)
        tail, df, active = plan.tail.copy(), plan.df.copy(), plan.active.copy()
        tail[steps], df[steps], active[steps] = self.k, self.df, True
        return plan._replace(tail=tail, df=df, active=active)
