"""Timing that survives a noisy machine: candidates take turns, medians and ratios are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds a call of one candidate over the rounds.

    Attributes:
      median: of the seconds.
      low: fastest round.
      high: slowest round.
      ratio: median over rounds of (this candidate's seconds / the reference's in the same round).
      error: standard error of ``ratio``, from the median deviation of the rounds' ratios.
    """

    median: float
    low: float
    high: float
    ratio: float
    error: float = 0.0


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    rounds: int = 10,
    warmup: int = 2,
    calls: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time callables in turn, A B C A B C …, so that a drift of the machine hits all alike.

    Args:
      candidates: name -> callable that returns only when its work is done
        (``jax.block_until_ready`` inside).
      reference: name of the one that ratios are relative to.
      rounds: measured rounds.
      warmup: rounds before them that do not count (compilation, caches).
      calls: calls of each candidate within a round, for very short ones.
      clock: what counts seconds; ``time.process_time`` counts those of all the process's threads
        on a CPU and so hardly notices other processes.

    Returns:
      name -> :class:`Timing`, in the order of ``candidates``.
    """
    found = take_turns_by(
        {"": clock}, candidates, reference=reference, rounds=rounds, warmup=warmup, calls=calls
    )
    return found[""]


def take_turns_by(
    clocks: Mapping[str, Callable[[], float]],
    candidates: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    rounds: int = 10,
    warmup: int = 2,
    calls: int = 1,
) -> dict[str, dict[str, Timing]]:
    """As :func:`take_turns`, with several clocks around the same calls: clock -> its result."""
    names = list(candidates)
    seconds: dict[str, dict[str, list[float]]] = {c: {n: [] for n in names} for c in clocks}
    for turn in range(warmup + rounds):
        # The order rotates, so that nobody always runs behind the same neighbour.
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began = {clock: read() for clock, read in clocks.items()}
            for _ in range(calls):
                candidates[name]()
            ended = {clock: read() for clock, read in clocks.items()}
            if turn >= warmup:
                for clock in clocks:
                    seconds[clock][name].append((ended[clock] - began[clock]) / calls)
    return {
        clock: {name: _timing(by_name[name], by_name[reference]) for name in names}
        for clock, by_name in seconds.items()
    }


def _timing(own: Sequence[float], reference: Sequence[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    middle = statistics.median(ratios)
    # Of a normal sample the median's error is 1.25 deviations / sqrt(n), and 1.48 median deviations
    # are a deviation; one slow round has no say in either.
    spread = 1.4826 * statistics.median(abs(ratio - middle) for ratio in ratios)
    error = 1.2533 * spread / len(ratios) ** 0.5
    return Timing(statistics.median(own), min(own), max(own), middle, error)
