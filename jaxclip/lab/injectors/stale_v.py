"""A tensor whose gradient grows k-fold and stays so: the second moment is behind (Wortsman et al.,
2023, arXiv:2304.13013)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxclip.lab.injectors import _plan


@dataclasses.dataclass(frozen=True)
class StaleV:
    """g ← g / k up to a step, then g. Adam does not see the scale (but for ε), so the run is the
    clean one up to there.

    Attributes:
      k: the factor.
      start: first step with the gradient as it is; choose it above 1 / (1 - β2).
      path: pattern of the tensors' paths.
    """

    k: float = 30.0
    start: int = 1000
    path: str = "^image/patch_embedding"

    def apply(self, plan: _plan.Plan, place: _plan.Place) -> _plan.Plan:
        if self.k <= 0:
            raise ValueError(f"injector 'stale_v': k={self.k} must be positive")
        _plan.span(place, "stale_v", self.start, 1)
        where = _plan.tensors(place, "stale_v", self.path)
        gradient, active = plan.gradient.copy(), plan.active.copy()
        gradient[: self.start, where] /= np.float32(self.k)
        active[self.start] = True
        return plan._replace(gradient=gradient, active=active)


def rms_after(k: float, b2: float, start: int) -> float:
    """RMS of the first step after a constant gradient grew k-fold: k / sqrt(b + (1 - b) k²).

    Args:
      k: the factor.
      b2: β2 of the second moment.
      start: number of updates before; 1 - b = (1 - β2) / (1 - β2^(start + 1)).
    """
    new = (1 - b2) / (1 - b2 ** (start + 1))
    return k / math.sqrt(1 - new + new * k * k)
