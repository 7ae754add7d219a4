"""Spikes of a loss or gradient norm: how many, how high, and what they cost.

A value is a spike if it lies more than ``threshold`` (10) standard deviations above the mean of the
``window`` (1000) values before it. The spike score is the share of such steps in a run, as AdaGC
(Wang et al., 2026) and ZClip (Kumar et al., 2025) report it.

What the definition leaves open: the standard deviation is the population's; the value itself is not
part of its own window; until there are ``window`` values before it, those that there are make do,
from ``min_history`` (100) on; a value that is NaN or +inf is always a spike, and no part of later
windows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

WINDOW = 1000
THRESHOLD = 10.0
MIN_HISTORY = 100

# A constant stretch has no deviation: a last-digit difference from its mean is no spike.
_ROUNDING = 1e-9
_ROWS_AT_ONCE = 2048


class Episode(NamedTuple):
    """A spike and what follows, up to the recovery.

    Attributes:
      step: step of the first spike.
      peak: largest finite value up to the recovery (NaN if there is none).
      ratio: largest ratio of a spike in it to its trailing median (NaN if none is finite).
      spikes: number of spikes in it.
      steps_lost: steps from the first spike (of a gradient norm: from the step after it, where it
        shows in the loss) until the loss was back at or under its trailing mean before the spike;
        if that never happened, to the end of the curve.
      recovered: whether it was back.
    """

    step: int
    peak: float
    ratio: float
    spikes: int
    steps_lost: int
    recovered: bool


@dataclasses.dataclass(frozen=True)
class Spikes:
    """The spikes of a curve.

    Attributes:
      score: share of the steps that are spikes, in 0…1 (0 for an empty curve).
      count: number of spikes.
      nonfinite: how many of these were NaN or infinite.
      largest_ratio: largest ratio of a finite spike to its trailing median (NaN without one).
      steps_lost: sum over the episodes.
      steps: int64[count], the steps of the spikes.
      episodes: spikes grouped by recovery.
    """

    score: float
    count: int
    nonfinite: int
    largest_ratio: float
    steps_lost: int
    steps: np.ndarray
    episodes: tuple[Episode, ...]


def find_spikes(
    values: Sequence[float] | np.ndarray,
    *,
    steps: Sequence[int] | np.ndarray | None = None,
    loss: Sequence[float] | np.ndarray | None = None,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    min_history: int = MIN_HISTORY,
) -> Spikes:
    """Find the spikes of a whole curve.

    Args:
      values: float[N], the curve: a loss or a gradient norm at each step.
      steps: int[N], ascending step numbers (default 0, 1, …).
      loss: float[N], the curve that has to recover, at the same steps (default: ``values``).
      window: number of values in the trailing statistics.
      threshold: in standard deviations.
      min_history: fewest values to judge by.

    Returns:
      :class:`Spikes`.

    Raises:
      ValueError: lengths differ, or an option is out of range.
    """
    curve = np.asarray(values, np.float64)
    recovery = curve if loss is None else np.asarray(loss, np.float64)
    numbers = np.arange(len(curve)) if steps is None else np.asarray(steps, np.int64)
    if not curve.shape == recovery.shape == numbers.shape or curve.ndim != 1:
        raise ValueError(
            f"values {curve.shape}, steps {numbers.shape} and loss {recovery.shape} must be of one "
            "length"
        )
    _check_options(window, threshold, min_history)
    trail = _Trail(curve, window)
    places = np.flatnonzero(_is_spike(curve, *trail.statistics(min_history), threshold))
    ratios = {int(i): _ratio(float(curve[i]), trail.at(int(i))) for i in places}
    episodes = _episodes(curve, recovery, numbers, places, ratios, window)
    finite = [ratio for ratio in ratios.values() if math.isfinite(ratio)]
    return Spikes(
        score=len(places) / len(curve) if len(curve) else 0.0,
        count=len(places),
        nonfinite=int(np.count_nonzero(~np.isfinite(curve[places]))),
        largest_ratio=max(finite, default=math.nan),
        steps_lost=sum(episode.steps_lost for episode in episodes),
        steps=numbers[places],
        episodes=tuple(episodes),
    )


def _check_options(window: int, threshold: float, min_history: int) -> None:
    if not 1 <= min_history <= window:
        raise ValueError(f"min_history={min_history} must be in 1…window={window}")
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} must be positive")


def _is_spike(value: Any, mean: Any, deviation: Any, threshold: float) -> Any:
    with np.errstate(invalid="ignore"):
        above = value - mean > threshold * deviation + _ROUNDING * np.abs(mean)
    return above | np.isnan(value) | (value == np.inf)


class _Trail:
    """The finite values of a curve, and which of them come before each place."""

    def __init__(self, curve: np.ndarray, window: int):
        finite = np.isfinite(curve)
        self.window = window
        self.finite = curve[finite]
        self.before = np.cumsum(finite) - finite

    def at(self, place: int) -> np.ndarray:
        """The last ``window`` finite values before a place."""
        stop = int(self.before[place])
        return self.finite[max(0, stop - self.window) : stop]

    def statistics(self, min_history: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of :meth:`at` of each place; NaN where there are too few values."""
        size, window = len(self.finite), self.window
        means, deviations = np.full(size + 1, np.nan), np.full(size + 1, np.nan)
        for stop in range(min_history, min(window, size + 1)):
            means[stop], deviations[stop] = self.finite[:stop].mean(), self.finite[:stop].std()
        if size >= window:
            # Direct sums over each window, a block of them at a time: running sums would drift.
            windows = np.lib.stride_tricks.sliding_window_view(self.finite, window)
            for start in range(0, len(windows), _ROWS_AT_ONCE):
                block = windows[start : start + _ROWS_AT_ONCE]
                stop = start + window
                means[stop : stop + len(block)] = block.mean(axis=1)
                deviations[stop : stop + len(block)] = block.std(axis=1)
        return means[self.before], deviations[self.before]


def _ratio(value: float, history: np.ndarray) -> float:
    """Ratio of a value to its trailing median; NaN where either is not usable."""
    median = float(np.median(history)) if len(history) else math.nan
    return value / median if math.isfinite(value) and median > 0 else math.nan


def _episodes(
    curve: np.ndarray,
    loss: np.ndarray,
    numbers: np.ndarray,
    places: np.ndarray,
    ratios: dict[int, float],
    window: int,
) -> list[Episode]:
    # What a gradient does shows in the loss of the next step.
    delay = 0 if loss is curve else 1
    trail = _Trail(loss, window)
    episodes = []
    free_from = 0
    for place in map(int, places):
        if place < free_from:
            continue
        history = trail.at(place)
        level = history.mean() if len(history) else math.inf
        first = min(place + delay, len(loss) - 1)
        back = np.flatnonzero(loss[first:] <= level)  # NaN is not back
        end = first + int(back[0]) if len(back) else len(loss) - 1
        inside = [int(p) for p in places if place <= p <= end]
        part = curve[place : end + 1]
        known = [ratios[p] for p in inside if math.isfinite(ratios[p])]
        episodes.append(
            Episode(
                step=int(numbers[place]),
                peak=float(max(part[np.isfinite(part)], default=math.nan)),
                ratio=max(known, default=math.nan),
                spikes=len(inside),
                steps_lost=int(numbers[end] - numbers[first]),
                recovered=len(back) > 0,
            )
        )
        free_from = end + 1
    return episodes
