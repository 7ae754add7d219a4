"""Do loss spikes follow RMS events? Wortsman et al.'s detector (2023, arXiv:2304.13013).

An RMS event is a step with RMS >= 2.3 of a watched tensor; a loss event is a loss above its running
mean by 3.2 running deviations, several times within 10 steps; events less than 10 steps apart are
one. In the paper 28 of 30 loss events came 1 to 8 steps after an RMS event of the patch embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RMS_THRESHOLD = 2.3
DEVIATIONS = 3.2
APART = 10
LEAD = (1, 8)


class LeadLag(NamedTuple):
    """How loss events lie to RMS events.

    Attributes:
      rms_events: number of RMS events.
      loss_events: number of loss events.
      led: loss events with an RMS event 1 to 8 steps before.
      p_value: share of random placements of as many loss events with at least as many led.
    """

    rms_events: int
    loss_events: int
    led: int
    p_value: float


def rms_events(rms: np.ndarray, *, start: int = 0, threshold: float = RMS_THRESHOLD) -> np.ndarray:
    """int[K]: first steps of the RMS events from ``start`` on."""
    steps = np.flatnonzero(np.asarray(rms) >= threshold)
    return _merge(steps[steps >= start])


def loss_events(
    loss: np.ndarray,
    *,
    start: int = 100,
    window: int = 1000,
    deviations: float = DEVIATIONS,
    several: int = 2,
) -> np.ndarray:
    """int[K]: first steps of the loss events.

    Args:
      loss: float[T].
      start: steps that are not looked at; the paper leaves out 1000.
      window: steps in the running mean and deviation, those before the step.
      deviations: how many make a deviating step.
      several: deviating steps that must lie within 10 steps.
    """
    loss = np.asarray(loss, np.float64)
    deviating = []
    for step in range(max(start, 2), len(loss)):
        before = loss[max(0, step - window) : step]
        before = before[np.isfinite(before)]
        level = before.mean() + deviations * before.std() if len(before) else np.inf
        if not loss[step] <= level:
            deviating.append(step)
    steps = np.asarray(deviating, int)
    enough = [np.sum((steps >= s) & (steps < s + APART)) >= several for s in steps]
    inside = steps[np.asarray(enough, bool)] if len(steps) else steps
    return _merge(inside)


def lead_lag(
    rms: Sequence[int], loss: Sequence[int], steps: range, *, draws: int = 2000, seed: int = 0
) -> LeadLag:
    """Count the loss events that an RMS event precedes, and how often chance would do as well.

    Args:
      rms: steps of RMS events.
      loss: steps of loss events.
      steps: where loss events could lie.
      draws: random placements.
      seed: of these.
    """
    warnings, spikes = np.asarray(rms, int), np.asarray(loss, int)
    covered = np.zeros(steps.stop + LEAD[1] + 1, bool)
    for lead in range(LEAD[0], LEAD[1] + 1):
        covered[np.minimum(warnings + lead, len(covered) - 1)] = True
    led = int(covered[spikes].sum()) if len(spikes) else 0
    if not len(spikes):
        return LeadLag(len(warnings), 0, 0, 1.0)
    drawn = np.random.default_rng(seed).choice(np.asarray(steps), (draws, len(spikes)))
    by_chance = covered[drawn].sum(axis=1)
    p_value = (1 + int(np.sum(by_chance >= led))) / (1 + draws)
    return LeadLag(len(warnings), len(spikes), led, p_value)


def _merge(steps: np.ndarray) -> np.ndarray:
    """Events less than 10 steps apart are one, dated at the first."""
    kept: list[int] = []
    last = -APART
    for step in map(int, steps):
        if step - last >= APART:
            kept.append(step)
        last = step
    return np.asarray(kept, int)
