"""From record numbers to pixels and captions: reading, decoding, caching, counting what is bad."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxclip.data.ahead import Closed, interpreter_ends
from jaxclip.data.dataset import RecordSource
from jaxclip.data.image_backend import Backend, Picture, Pillow
from jaxclip.data.image_op import Cut, Size
from jaxclip.data.image_ops import Chain
from jaxclip.data.record import BadRecord, Record

_LOG = logging.getLogger(__name__)

# How many bad records are remembered (so as not to read them again) and named in the log.
_MAX_REMEMBERED = 100_000
_MAX_LOGGED = 5
_PIECE_BYTES = 1 << 20
_RECORD_OVERHEAD = 400  # bytes of Python objects around a cached record


# (number of the record, record) -> what fields keep of it by their keys, or why it can't be used.
Examine = Callable[[int, Record], dict[str, Any] | BadRecord]
# (number of the record, numbers that its row draws) -> the numbers of its image ops.
Numbers = Callable[[int, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """A record that can be used.

    Attributes:
      index: its number.
      record: the record, without image bytes and meta.
      pixels: the decoded image, uint8[H, W, 3]; None if no view wants it.
      size: (width, height) of the image as it is stored; ``pixels`` may be a smaller version.
      extras: what fields keep of it.
    """

    index: int
    record: Record
    pixels: np.ndarray | None
    size: Size
    extras: Mapping[str, Any]


class RecordStats:
    """Counts of bad records met, by reason; safe to use from many threads."""

    def __init__(self, what: str):
        self._what = what
        self._lock = threading.Lock()
        self._bad: dict[int, BadRecord] = {}
        self._records: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._drawn = 0

    def add(self, index: int, bad: BadRecord) -> None:
        """Count one use of bad record ``index``; the first few are logged."""
        with self._lock:
            self._uses[bad.reason] += 1
            if index in self._bad:
                return
            self._records[bad.reason] += 1
            # A store that did not answer may do so next time.
            if len(self._bad) < _MAX_REMEMBERED and bad.reason != "unreachable":
                self._bad[index] = bad
            count = sum(self._records.values())
        if count <= _MAX_LOGGED:
            last = "; further ones are only counted" if count == _MAX_LOGGED else ""
            name = f"record {index}" + (f" ({bad.key})" if bad.key else "")
            _LOG.warning("%s: %s is %s: %s%s", self._what, name, bad.reason, bad.detail, last)

    def add_drawn(self, count: int) -> None:
        """Count records that were drawn and could be used."""
        with self._lock:
            self._drawn += count

    @property
    def drawn(self) -> int:
        """How often a record was drawn that could be used."""
        return self._drawn

    def bad(self) -> list[tuple[int, BadRecord]]:
        """The bad records that are remembered, with their numbers."""
        with self._lock:
            return list(self._bad.items())

    def known(self, index: int) -> BadRecord | None:
        """What is known to be wrong with record ``index``."""
        return self._bad.get(index)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """``{"records": {reason: distinct records}, "uses": {reason: times one was drawn}}``."""
        with self._lock:
            return {"records": dict(self._records), "uses": dict(self._uses)}


class RecordLoader:
    """Reads records of one split, decodes them and runs the image ops, on several threads.

    Decoded images are kept in memory, before any op, within a limit. That changes no result. An
    image is decoded once for all views, and not at all if there is none.

    Args:
      source: the split.
      views: chains of image ops by the key of the view.
      what: the split's name in log messages.
      cache_decoded_mb: how much memory decoded records may take.
      num_threads: threads that read and decode; 0 = one for each CPU of this process.
      texts_of: captions of a record (by default its own).
      need_texts: whether a record without captions is bad.
      examine: what else a record must have.
      backend: what decodes, by default Pillow.
      replays: for views whose ops' numbers are kept with the records, how they are got.
      need_pixels: decode whole pictures also where there is no view.
    """

    def __init__(
        self,
        source: RecordSource,
        views: Mapping[str, Chain],
        *,
        what: str = "data",
        cache_decoded_mb: float = 0,
        num_threads: int = 0,
        texts_of: Callable[[Record], tuple[str, ...]] | None = None,
        need_texts: bool = True,
        examine: Examine | None = None,
        backend: Backend | None = None,
        replays: Mapping[str, Numbers] | None = None,
        need_pixels: bool = False,
    ):
        self._source = source
        self._replays = dict(replays or {})
        self._need_pixels = need_pixels
        self._views = dict(views)
        sizes = {chain.image_size for chain in views.values()}
        self._largest = max(sizes, default=0)
        # With several sizes, no image has the final shape of all views.
        block_side = self._largest if len(sizes) == 1 else 0
        self._keeps_square = bool(block_side) and all(c.keeps_square for c in views.values())
        self._cache = _Cache(len(source), block_side, int(cache_decoded_mb * 2**20))
        self._texts_of = texts_of or (lambda record: record.texts)
        self._need_texts = need_texts
        self._examine = examine
        self._backend: Backend = Pillow() if backend is None else backend
        self._num_threads = num_threads or num_cpus()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self.stats = RecordStats(what)

    def load(self, index: int, draws: Mapping[str, np.ndarray]) -> Loaded | BadRecord:
        """Read and decode one record; bad ones are counted.

        Args:
          index: number of the record.
          draws: the random numbers of its views, float32[num_draws] each: a backend may decode no
            more of it than they will show.
        """
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        bad = self.stats.known(index)
        loaded = bad if bad is not None else self._load(index, draws)
        if isinstance(loaded, BadRecord):
            self.stats.add(index, loaded)
        return loaded

    def _load(self, index: int, draws: Mapping[str, np.ndarray]) -> Loaded | BadRecord:
        record = self._source[index]
        if isinstance(record, BadRecord):
            return record
        texts = self._texts_of(record)
        if not texts and self._need_texts:
            return BadRecord("empty_caption", "", record.key)
        extras = self._examine(index, record) if self._examine is not None else {}
        if isinstance(extras, BadRecord):
            return extras
        pixels, size = None, (0, 0)
        if self._views or self._need_pixels:
            draws = {key: self._numbers(key, index, u) for key, u in draws.items()}
            picture = self._backend.decode(record.image, lambda size: self._cuts(size, draws))
            if isinstance(picture, BadRecord):
                return dataclasses.replace(picture, key=record.key)
            pixels, size = picture
        record = dataclasses.replace(record, image=b"", texts=texts, meta="")
        loaded = Loaded(index, record, pixels, size, extras)
        # What was decoded for these draws alone must not serve others.
        keep = pixels is None or self._backend.is_whole(size, self._largest)
        return self._cache.put(loaded) if keep else loaded

    def _numbers(self, key: str, index: int, u: np.ndarray) -> np.ndarray:
        """The numbers of a view's ops, of what its row draws."""
        replay = self._replays.get(key)
        return u if replay is None else replay(index, u)

    def _cuts(self, size: Size, draws: Mapping[str, np.ndarray]) -> list[Cut]:
        """What the views cut out of a picture first; empty if one of them needs all of it."""
        cuts = [chain.first_cut(size, draws[key]) for key, chain in self._views.items()]
        return [] if None in cuts or self._need_pixels else [cut for cut in cuts if cut is not None]

    def batch(
        self,
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        replacement: Callable[[int, int], int] | None,
    ) -> tuple[dict[str, np.ndarray], list[Loaded | None]]:
        """Views and records of a batch.

        Args:
          indices: int64[n], record numbers.
          draws: uniform numbers float32[n, num_draws] of each view.
          replacement: (row, attempt) -> number of the record that stands in for a bad one; None
            leaves the row black and its record None.

        Returns:
          uint8[n, S, S, 3] of each view, and the n records.

        Raises:
          RuntimeError: so many replacements were bad as well that nothing usable is to be found.
        """
        self.stats.add_drawn(len(indices))
        images = self._cache.images(indices) if self._keeps_square else None
        if images is not None:
            cached: list[Loaded | None] = [self._cache.get(int(index)) for index in indices]
            return {
                key: images if n == 0 else images.copy() for n, key in enumerate(self._views)
            }, cached
        views = {
            key: np.zeros((len(indices), chain.image_size, chain.image_size, 3), np.uint8)
            for key, chain in self._views.items()
        }
        records: list[Loaded | None] = [None] * len(indices)

        def fill(rows: range) -> None:
            if self._closed or interpreter_ends():
                raise Closed("reading was given up")
            chosen: list[int] = []
            indices_of: list[int] = []
            pictures: list[Picture] = []
            for row in rows:
                own = {key: u[row] for key, u in draws.items()}
                loaded = records[row] = self._usable(int(indices[row]), row, own, replacement)
                if loaded is not None and loaded.pixels is not None:
                    chosen.append(row)
                    indices_of.append(loaded.index)
                    pictures.append(Picture(loaded.pixels, loaded.size))
            if chosen:
                for key in self._views:
                    u = draws[key][chosen]
                    if key in self._replays:
                        pairs = zip(indices_of, u, strict=True)
                        u = np.stack([self._numbers(key, index, row) for index, row in pairs])
                    views[key][chosen] = self._view(key, pictures, u)

        pieces = self._pieces(len(indices))
        if self._num_threads == 1 or len(pieces) == 1:
            for rows in pieces:
                fill(rows)
        else:
            list(self._threads().map(fill, pieces))
        return views, records

    def _pieces(self, count: int) -> list[range]:
        """Rows handled together: few enough for their planes to stay in a CPU's own cache (for each
        op goes through all of them), and for all threads to have work to the end."""
        in_cache = _PIECE_BYTES // (4 * 3 * max(1, self._largest**2))
        size = max(1, min(in_cache, -(-count // (2 * self._num_threads))))
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def _view(self, key: str, pictures: list[Picture], u: np.ndarray) -> np.ndarray:
        """uint8[n, S, S, 3] of a view of pictures."""
        chain, cut = self._views[key], self._backend.cut
        cuts = [chain.first_cut(p.size, row) for p, row in zip(pictures, u, strict=True)]
        if cut is None or None in cuts:
            return chain([picture.pixels for picture in pictures], u)
        cut_out = [cut(p, c) for p, c in zip(pictures, cuts, strict=True) if c is not None]
        return chain(cut_out, u, first_done=True)

    def _usable(
        self,
        index: int,
        row: int,
        draws: Mapping[str, np.ndarray],
        replacement: Callable[[int, int], int] | None,
    ) -> Loaded | None:
        attempts = 100
        loaded = self.load(index, draws)
        for attempt in range(attempts):
            if not isinstance(loaded, BadRecord):
                return loaded
            if replacement is None:
                return None
            loaded = self.load(replacement(row, attempt), draws)
        raise RuntimeError(
            f"{attempts} records drawn one after the other cannot be used, the last one because: "
            f"{getattr(loaded, 'reason', '')} {getattr(loaded, 'detail', '')}; all counts: "
            f"{self.stats.as_dict()['records']}"
        )

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="jaxclip-data")
        return self._pool

    def close(self) -> None:
        """Stop the threads; a batch that is being made is given up."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


class _Cache:
    """Decoded records within a memory limit; those that come first stay.

    Images that already have the final shape, ``side`` x ``side``, lie in one array, if that fits
    for the whole split, so that a batch of them is one indexing operation.
    """

    def __init__(self, num_records: int, side: int, limit: int):
        self._left = limit
        self._shape = (side, side, 3)
        self._loaded: dict[int, Loaded] = {}
        self._lock = threading.Lock()
        fits = 0 < num_records * int(np.prod(self._shape)) <= limit
        # Memory that is never written takes no space: np.empty only reserves it.
        self._block = np.empty((num_records, *self._shape), np.uint8) if fits else None
        self._in_block = np.zeros(num_records if fits else 0, bool)

    def get(self, index: int) -> Loaded | None:
        return self._loaded.get(index)

    def images(self, indices: np.ndarray) -> np.ndarray | None:
        """uint8[n, H, W, 3] if all of them are in the block."""
        if self._block is None or not self._in_block[indices].all():
            return None
        return self._block[indices]

    def put(self, loaded: Loaded) -> Loaded:
        """Keep a record if there is room; returns it, with its pixels where they are kept."""
        pixels = loaded.pixels
        size = _RECORD_OVERHEAD + (0 if pixels is None else pixels.nbytes)
        size += sum(len(text) + 60 for text in loaded.record.texts)
        size += sum(_size_of(value) for value in loaded.extras.values())
        with self._lock:
            if size > self._left or loaded.index in self._loaded:
                return loaded
            self._left -= size
            if self._block is not None and pixels is not None and pixels.shape == self._shape:
                self._block[loaded.index] = pixels
                loaded = dataclasses.replace(loaded, pixels=self._block[loaded.index])
                self._loaded[loaded.index] = loaded
                self._in_block[loaded.index] = True
            else:
                self._loaded[loaded.index] = loaded
        return loaded


def _size_of(extra: Any) -> int:
    """About the bytes of what a field keeps."""
    if isinstance(extra, np.ndarray):
        return extra.nbytes + 200
    return 100 + (sum(len(text) + 60 for text in extra) if isinstance(extra, tuple) else 0)


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
