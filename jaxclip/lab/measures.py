"""Numbers that a stability study reports; pure functions of curves.

A loss that is not finite counts as one that never came down: it is replaced by the loss at the
start, as LR sensitivity has it (Wortsman et al., 2023, arXiv:2309.14322).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.train import spikes

# Convention of OLMo 2 beside the ten of :mod:`jaxclip.train.spikes`.
FEW_DEVIATIONS = 7.0
_SMOOTH = 25


def final_loss(loss: np.ndarray, last: int = 50) -> float:
    """Mean of the last losses of float[steps]; infinite where one of them is not finite."""
    mean = float(np.mean(np.asarray(loss, np.float64)[-last:]))
    return mean if math.isfinite(mean) else math.inf


def steps_to(loss: np.ndarray, target: float, smooth: int = _SMOOTH) -> int | None:
    """Steps until the trailing median is at or under a target; None for never.

    Args:
      loss: float[T].
      target: a loss.
      smooth: values in the trailing median.
    """
    at = np.flatnonzero(trailing_median(loss, smooth) <= target)
    return int(at[0]) + 1 if len(at) else None


def trailing_median(values: np.ndarray, size: int = _SMOOTH) -> np.ndarray:
    """float[T]: median of the last ``size`` values, of those that there are in the beginning."""
    values = np.where(np.isfinite(values), values, np.inf)
    padded = np.concatenate([np.full(size - 1, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    return np.nanmedian(windows, axis=1)


def lr_sensitivity(losses: Sequence[float], start: float) -> float:
    """Mean over rates of min(loss, loss at the start) - the best of them.

    Args:
      losses: final losses over a logarithmic grid of learning rates.
      start: the loss at initialisation.
    """
    bounded = _bounded(losses, start)
    return float(np.mean(bounded - bounded.min()))


def stable_range(
    rates: Sequence[float],
    losses: Sequence[float],
    start: float,
    *,
    best: float | None = None,
    spiked: Sequence[bool] | None = None,
    slack: float = 0.1,
) -> float:
    """Ratio of the largest to the smallest rate that trains well: 1 for one rate, 0 for none.

    A rate does if its final loss is at most best + slack (start - best) and nothing spiked.

    Args:
      rates: learning rates.
      losses: final loss of each.
      start: the loss at initialisation.
      best: the best loss; default that of ``losses``.
      spiked: whether a run had spikes; default that none had.
      slack: share of the way from the start that may be missing.
    """
    bounded = _bounded(losses, start)
    best = float(bounded.min()) if best is None else best
    fine = bounded <= best + slack * (start - best)
    if spiked is not None:
        fine &= ~np.asarray(spiked, bool)
    good = np.asarray(rates, np.float64)[fine]
    return float(good.max() / good.min()) if len(good) else 0.0


def damage(
    loss: np.ndarray, clean: np.ndarray, active: np.ndarray, steps: int = 200
) -> float | None:
    """Sum over steps from the first injection on of (loss - loss of the same run without it).

    Args:
      loss: float[T].
      clean: float[T], of the same seed.
      active: bool[T], the steps that were touched.
      steps: how many are summed.

    Returns:
      The sum, in loss times steps; None if nothing was injected.
    """
    at = np.flatnonzero(active)
    if not len(at):
        return None
    window = slice(int(at[0]), int(at[0]) + steps)
    both = [np.nan_to_num(curve[window], nan=np.inf, posinf=np.inf) for curve in (loss, clean)]
    return float(np.sum(np.asarray(both[0], np.float64) - np.asarray(both[1], np.float64)))


def of_cell(curves: Mapping[str, np.ndarray], last: int = 50) -> dict[str, float]:
    """What one run says by itself.

    Args:
      curves: of the run; ``loss`` and ``grad_norm`` at least.
      last: steps whose mean is the final loss.

    Returns:
      ``final_loss``, ``held_out_loss``, ``start_loss``, ``peak`` (largest loss behind the first
      quarter), ``spikes`` and ``spikes_7`` (spike scores of the loss at 10 and 7 deviations),
      ``gradient_spikes``, ``steps_lost``, ``skipped`` (steps), ``attention_logit``,
      ``norm_spread`` (deviation of the log gradient norm behind the first quarter),
      ``clipped/<rule>`` (share of its tensors and steps), ``rms/<path>`` (its largest); of runs
      with a policy ``judged`` (steps found to be spikes), ``rewinds`` and ``steps_repeated``.
    """
    loss, norm = curves["loss"], curves["grad_norm"]
    late = slice(len(loss) // 4, None)
    found = spikes.find_spikes(loss)
    finite = norm[late][np.isfinite(norm[late]) & (norm[late] > 0)]
    result = {
        "final_loss": final_loss(loss, last),
        "start_loss": float(loss[0]),
        "peak": float(np.max(np.nan_to_num(loss[late], nan=np.inf))),
        "spikes": found.score,
        "spikes_7": spikes.find_spikes(loss, threshold=FEW_DEVIATIONS).score,
        "gradient_spikes": spikes.find_spikes(norm, loss=loss).score,
        "steps_lost": float(found.steps_lost),
        "norm_spread": float(np.std(np.log(finite))) if len(finite) else math.nan,
    }
    if "nonfinite_count" in curves:
        result["skipped"] = float(curves["nonfinite_count"][-1])
    if "watch/spike" in curves:
        result["judged"] = float(np.count_nonzero(curves["watch/spike"]))
    for name in ("held_out_loss", "attention_logit", "rewinds", "steps_repeated"):
        if name in curves:
            result[name] = float(curves[name])
    for name, values in curves.items():
        if name.startswith("optim/") and name.endswith("/clipped"):
            rule = name.removeprefix("optim/").removesuffix("/clipped")
            result[f"clipped/{rule}"] = float(np.mean(values))
        if name.startswith("rms/"):
            result[name] = float(np.max(values[late]))
    return result


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and standard deviation (of the sample; NaN for one seed)."""
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        return math.inf, math.nan
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def _bounded(losses: Any, start: float) -> np.ndarray:
    array = np.asarray(losses, np.float64)
    return np.minimum(np.where(np.isfinite(array), array, np.inf), start)
