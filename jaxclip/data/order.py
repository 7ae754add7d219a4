"""Which record stands at which place of the endless row of training examples.

Training reads the records in epochs: permutation after permutation of the whole split, one after
the other without a gap, so a batch may run across the border of two. Row ``r`` of step ``s`` is
place ``s * global_batch_size + r``, and everything about a place is a pure function of (seed,
place): which record it is and every random number of its augmentation. Hence any step can be had at
once, on any number of hosts, in any order.

Only raw bits of Philox and of SeedSequence are used, which NumPy guarantees never to change.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

# What a random stream is for; part of its key, so that streams never share numbers.
_CHUNKS, _WINDOW, _REPLACEMENT, _GROUPS, _SOURCE, _BLOCK, _START = 1, 2, 3, 4, 5, 6, 7

DEFAULT_CHUNK = 1024
DEFAULT_WINDOW = 1 << 20


class ShuffledOrder:
    """Epochs of permutations of ``range(num_records)``.

    Up to ``window`` records are permuted at once. More than that are shuffled in two levels, so
    that reads stay local: chunks of consecutive records are permuted, then the records within
    windows of ``window / chunk`` such chunks. Each epoch is a permutation in both cases.

    Args:
      num_records: size of the split.
      seed: any non-negative integer.
      window: records that are shuffled together.
      chunk: consecutive records that stay in one window.

    Raises:
      ValueError: a size below one.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        window: int = DEFAULT_WINDOW,
        chunk: int = DEFAULT_CHUNK,
    ):
        for name, value in (("num_records", num_records), ("window", window), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        self.num_records = num_records
        self._seed = seed
        self._chunk = min(chunk, window, num_records)
        self._chunks_per_window = max(1, window // self._chunk)
        if num_records <= window:
            self._chunk, self._chunks_per_window = num_records, 1
        self._num_chunks = -(-num_records // self._chunk)
        self._cache: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self._lock = threading.RLock()  # making a window asks for the chunks

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Record indices at places of the endless row.

        Args:
          places: int64[n], each at least 0.

        Returns:
          int64[n], each in [0, num_records).
        """
        places = np.asarray(places, np.int64)
        epochs, offsets = np.divmod(places, self.num_records)
        result = np.empty_like(places)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            starts = self._window_starts(int(epoch))
            windows = np.searchsorted(starts, offsets[in_epoch], side="right") - 1
            indices = np.empty(windows.shape, np.int64)
            for window in np.unique(windows):
                chosen = windows == window
                records = self._window(int(epoch), int(window))
                indices[chosen] = records[offsets[in_epoch][chosen] - starts[window]]
            result[in_epoch] = indices
        return result

    def replacement(self, place: int, attempt: int) -> int:
        """Record that stands in at a place whose record cannot be used.

        Args:
          place: the place.
          attempt: 0, 1, … as replacements turn out to be unusable, too.

        Returns:
          A record index, uniformly drawn by (seed, place, attempt).
        """
        bits = _bits((self._seed, _REPLACEMENT, place, attempt), 1)[0]
        return int(bits % np.uint64(self.num_records))

    def _chunk_order(self, epoch: int) -> np.ndarray:
        return self._cached((_CHUNKS, epoch), lambda key: _permutation(key, self._num_chunks))

    def _window_starts(self, epoch: int) -> np.ndarray:
        """First offset of each window; they differ only by where the short last chunk has gone."""
        chunks = self._chunk_order(epoch)
        sizes = np.minimum(self._chunk, self.num_records - chunks * self._chunk)
        per_window = np.add.reduceat(sizes, np.arange(0, self._num_chunks, self._chunks_per_window))
        return np.concatenate([[0], np.cumsum(per_window)[:-1]])

    def _window(self, epoch: int, window: int) -> np.ndarray:
        def shuffled(key: tuple[int, ...]) -> np.ndarray:
            first = window * self._chunks_per_window
            chunks = self._chunk_order(epoch)[first : first + self._chunks_per_window]
            records = (chunks[:, None] * self._chunk + np.arange(self._chunk)).reshape(-1)
            records = records[records < self.num_records]
            return records[_permutation(key, len(records))]

        return self._cached((_WINDOW, epoch, window), shuffled)

    def _cached(self, key, make):  # type: ignore[no-untyped-def]
        with self._lock:
            if key not in self._cache:
                self._cache[key] = make((self._seed, *key))
                if len(self._cache) > 8:  # two epochs' chunks and windows, and some to spare
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]


def seed_of(seed: int, number: int) -> int:
    """The seed of the order of source ``number`` of a mixture."""
    return int(_bits((seed, _SOURCE, number), 1)[0])


def permutation_of(seed: int, block: int, count: int) -> np.ndarray:
    """The order int64[count] in which a block of a mixture's places is dealt out."""
    return _permutation((seed, _BLOCK, block), count)


def start_of(seed: int, epoch: int) -> float:
    """Where in [0, 1) an epoch's sampling by weights starts."""
    return _fraction((seed, _START, epoch))


def fraction_of(seed: int, place: int, attempt: int) -> float:
    """A number in [0, 1) that says which record stands in at a place."""
    return _fraction((seed, _REPLACEMENT, place, attempt))


def _fraction(key: tuple[int, ...]) -> float:
    return int(_bits(key, 1)[0] >> np.uint64(11)) * 2.0**-53


def _bits(key: tuple[int, ...], count: int) -> np.ndarray:
    """uint64[count] of random bits for a key of non-negative integers."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def _permutation(key: tuple[int, ...], count: int) -> np.ndarray:
    return np.argsort(_bits(key, count), kind="stable")


class GroupedOrder(ShuffledOrder):
    """The same epochs, in which records of one class stand together, ``group`` of them.

    In each window of the shuffled order, the records of a class are cut into groups of ``group``
    in the order in which they stand there. What is left of a class, and records without one, fill
    further places, ``group`` of them at a time. Groups begin at multiples of ``group`` of the
    endless row, so that none is cut by the border of a batch whose size is such a multiple. Each
    epoch is a permutation still, and which record stands where is a function of (seed, place).

    Args:
      num_records: size of the split.
      seed: any non-negative integer.
      labels: int[num_records], class of each record, negative for none.
      group: records of a class that stand together.
      window: records that are shuffled together.
      chunk: consecutive records that stay in one window.

    Raises:
      ValueError: a size below one.
    """

    def __init__(
        self,
        num_records: int,
        seed: int,
        labels: np.ndarray,
        group: int,
        window: int = DEFAULT_WINDOW,
        chunk: int = DEFAULT_CHUNK,
    ):
        super().__init__(num_records, seed, window, chunk)
        if group < 1:
            raise ValueError(f"group={group} must be at least 1")
        self._labels = np.asarray(labels)
        self._group = group

    def _window(self, epoch: int, window: int) -> np.ndarray:
        start = epoch * self.num_records + int(self._window_starts(epoch)[window])

        def grouped(key: tuple[int, ...]) -> np.ndarray:
            records = super(GroupedOrder, self)._window(epoch, window)
            order = _group_order(self._labels[records], self._group, -start % self._group, key)
            return records[order]

        return self._cached((_GROUPS, epoch, window), grouped)


def _group_order(labels: np.ndarray, group: int, lead: int, key: tuple[int, ...]) -> np.ndarray:
    """Permutation of the places of ``labels`` that puts classes together.

    Args:
      labels: int[n], negative for none.
      group: places that belong together.
      lead: places before the first group.
      key: of the random numbers that order the groups.
    """
    by_class = np.argsort(labels, kind="stable")
    ordered = labels[by_class]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.diff(np.r_[starts, len(ordered)])
    rank = np.arange(len(ordered)) - np.repeat(starts, counts)
    whole = (rank < np.repeat(counts // group * group, counts)) & (ordered >= 0)
    groups = by_class[whole].reshape(-1, group)
    singles = np.sort(by_class[~whole])  # as they stand in the shuffled order
    while len(groups) and len(singles) < lead:  # none to spare: one group is taken apart
        singles, groups = np.concatenate([singles, groups[-1]]), groups[:-1]
    head, singles = singles[:lead], singles[lead:]
    rest = len(singles) - len(singles) % group
    blocks = np.concatenate([groups, singles[:rest].reshape(-1, group)])
    blocks = blocks[_permutation(key, len(blocks))]
    return np.concatenate([head, blocks.reshape(-1), singles[rest:]])


def batch_of(step: int, passed_over: Sequence[Sequence[int]]) -> int:
    """Which batch of the order a step gets where some are passed over.

    Args:
      step: from 0.
      passed_over: ``[first, last]`` of each stretch of batches that no step gets, ascending and
        apart.

    Returns:
      The number of the batch; ``step`` itself if nothing before it is passed over.
    """
    batch = step
    for first, last in passed_over:
        if batch < first:
            break
        batch += last - first + 1
    return batch


def rows_per_process(size: int, process_index: int, process_count: int, name: str) -> int:
    """Rows of a global batch that each process gets.

    Raises:
      ValueError: the size is below one or does not divide, or there is no such process.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be in [0, {process_count})")
    if size < 1 or size % process_count:
        raise ValueError(
            f"{name}={size} must be a positive multiple of the {process_count} processes"
        )
    return size // process_count


def join_ranges(ranges: Iterable[Sequence[int]]) -> list[list[int]]:
    """Stretches ``[first, last]`` in any order, as few ascending ones that lie apart."""
    joined: list[list[int]] = []
    for first, last in sorted((int(a), int(b)) for a, b in ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1][1] = max(joined[-1][1], last)
        else:
            joined.append([first, last])
    return joined


def uniforms(seed: int, places: np.ndarray, count: int, stream: str = "") -> np.ndarray:
    """Random numbers of examples, by (seed, stream, place, number) alone.

    Counter-based (the finaliser of SplitMix64 over a keyed counter; Steele, Lea, Flood, 2014), so
    that the numbers of many places come out of a few array operations.

    Args:
      seed: any non-negative integer.
      places: int64[n].
      count: numbers for each place.
      stream: name of an independent row of numbers; empty for the first one.

    Returns:
      float32[n, count], uniform in [0, 1).
    """
    key = _bits((seed, 0, *_words(stream)), 2)
    with np.errstate(over="ignore"):
        base = _mix(np.asarray(places, np.int64).astype(np.uint64) ^ key[0])
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(base[:, None] + (counter ^ key[1])[None, :])
    # 24 bits are what a float32 below 1 can hold.
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def spread(u: np.ndarray, count: int) -> np.ndarray:
    """Many numbers out of two.

    Args:
      u: float32[2], uniform in [0, 1).
      count: how many.

    Returns:
      float64[count], uniform in [0, 1).
    """
    high, low = (np.asarray(u, np.float64) * 2.0**24).astype(np.uint64)
    with np.errstate(over="ignore"):
        counter = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(_mix((high << np.uint64(24) | low) + np.uint64(1)) + counter)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _words(stream: str) -> tuple[int, ...]:
    """A name as integers, none for the empty one."""
    if not stream:
        return ()
    digest = hashlib.sha256(stream.encode("utf-8")).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
