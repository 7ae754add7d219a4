"""The n largest values of any number of records, exactly, by passes over histograms.

A record's rank is 96 bits: its value (:func:`jaxclip.curate.hashing.ordered_bits`), then a hash of
its key, so that of equal values the same ones are chosen on any machine. Each pass counts the next
16 bits of those records whose bits before are those of the threshold: two passes find a threshold
among distinct values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxclip.curate.flow import Flow
from jaxclip.curate.hashing import ordered_bits
from jaxclip.curate.rows import Rows
from jaxclip.curate.store import Stored

_RANK_BITS, _BITS = 96, 16
# Counters of one pass: groups times 2^bits.
_COUNTERS = 1 << 23

# rows -> (group int[n], or -1 for those that take no part; value float32[n])
Values = Callable[[Rows], tuple[np.ndarray, np.ndarray]]


def thresholds(
    flow: Flow,
    name: str,
    values: Values,
    wanted: Callable[[np.ndarray], np.ndarray],
    groups: int = 1,
) -> Stored:
    """Find the threshold of each group.

    Args:
      flow: of the step.
      name: of the passes.
      values: which group a record belongs to, and its value.
      wanted: counts int64[groups] -> how many of each are wanted, at most the counts.
      groups: how many groups there are.

    Returns:
      Stored ``high`` uint64[groups] and ``low`` uint64[groups] for :func:`is_above`, ``count`` and
      ``wanted``.
    """
    salt = flow.salt("ties")
    counts = flow.total(f"{name}_count", functools.partial(_count, values, groups)).arrays()
    need = np.asarray(wanted(counts["count"]), np.int64)
    bits = _BITS
    while groups << bits > _COUNTERS and bits > 4:
        bits //= 2

    def search() -> Mapping[str, Any]:
        prefix = np.zeros((2, groups), np.uint64)
        left, done = need.copy(), need == 0
        # Nothing wanted: above all. The whole of what is left wanted: all that begins like this.
        prefix[:, done] = np.uint64(2**64 - 1)
        for digit in range(_RANK_BITS // bits):
            task = functools.partial(
                _digits, values, salt, groups, digit, bits, prefix.copy(), done.copy()
            )
            flat = flow.counts(f"{name}_digit{digit}", task, groups << bits)
            found = flat.reshape(groups, 1 << bits)
            place = _place(digit, bits)
            for group in np.flatnonzero(~done):
                above = np.cumsum(found[group][::-1])[::-1]  # in this bin and all above
                bin_ = int(np.flatnonzero(above >= left[group])[-1])
                left[group] -= above[bin_] - found[group][bin_]
                word, shift = place
                prefix[word, group] |= np.uint64(bin_) << np.uint64(shift)
                done[group] = left[group] == found[group][bin_]
            if done.all():
                break
        return {"high": prefix[0], "low": prefix[1], "count": counts["count"], "wanted": need}

    return flow.save(f"{name}_threshold", search)


def is_above(rows: Rows, salt: str, stored: Stored, group: np.ndarray, value: np.ndarray) -> Any:
    """bool[n]: which records are among the wanted ones of their groups."""
    found = stored.arrays()
    high, low = ordered_bits(value).astype(np.uint64), rows.hashes(salt)
    safe = np.maximum(group, 0)
    least_high, least_low = found["high"][safe], found["low"][safe]
    return (group >= 0) & ((high > least_high) | ((high == least_high) & (low >= least_low)))


def _count(values: Values, groups: int, rows: Rows) -> dict[str, np.ndarray]:
    group, _ = values(rows)
    return {"count": np.bincount(group[group >= 0], minlength=groups)}


def _place(digit: int, bits: int) -> tuple[int, int]:
    """Word (value or hash) and shift of a digit, counted from the top of the 96 bits."""
    top = 32 - (digit + 1) * bits
    return (0, top) if top >= 0 else (1, 96 - (digit + 1) * bits)


def _digits(
    values: Values,
    salt: str,
    groups: int,
    digit: int,
    bits: int,
    prefix: np.ndarray,
    done: np.ndarray,
    rows: Rows,
) -> np.ndarray:
    """Group and digit, as one number, of each record that begins like its group's threshold."""
    group, value = values(rows)
    safe = np.maximum(group, 0)
    words = [ordered_bits(value).astype(np.uint64)]
    word, shift = _place(digit, bits)
    if word:
        words.append(rows.hashes(salt))
    taking = (group >= 0) & ~done[safe]
    if word:
        taking &= words[0] == prefix[0][safe]
    above = shift + bits
    if above < (64 if word else 32):
        taking &= (words[word] >> np.uint64(above)) == (prefix[word][safe] >> np.uint64(above))
    digits = (words[word] >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
    return (safe[taking] << bits) | digits[taking].astype(np.int64)
