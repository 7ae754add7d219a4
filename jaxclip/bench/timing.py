"""Timing that survives a noisy machine: candidates take turns, medians and ratios are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxclip.markdown import table as table  # what every benchmark prints


class Timing(NamedTuple):
    """Seconds a call of one candidate over the rounds.

    Attributes:
      median: of the seconds.
      low: fastest round.
      high: slowest round.
      ratio: median over rounds of (this candidate's seconds / the reference's in the same round).
    """

    median: float
    low: float
    high: float
    ratio: float


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
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(warmup + rounds):
        # The order rotates, so that nobody always runs behind the same neighbour.
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began = clock()
            for _ in range(calls):
                candidates[name]()
            if turn >= warmup:
                seconds[name].append((clock() - began) / calls)
    return {name: _timing(seconds[name], seconds[reference]) for name in names}


def _timing(own: Sequence[float], reference: Sequence[float]) -> Timing:
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    return Timing(statistics.median(own), min(own), max(own), statistics.median(ratios))
