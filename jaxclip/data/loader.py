"""From record numbers to pixels and captions: reading, decoding, caching, counting what is bad."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxclip.data.ahead import Closed, interpreter_ends
from jaxclip.data.dataset import RecordSource
from jaxclip.data.decoded_cache import DecodedCache, Loaded
from jaxclip.data.image_backend import Backend, Picture, Pillow
from jaxclip.data.image_op import Cut, Size
from jaxclip.data.image_ops import Chain
from jaxclip.data.record import BadRecord, Record
from jaxclip.data.record_stats import MAX_ATTEMPTS, RecordStats
from jaxclip.data.shared_memory import empty_pictures, keep_freed_memory
from jaxclip.data.stages import DECODING, IMAGE_OPS, READING, Board

# Bytes of float32 planes that fit a CPU's own cache.
_PIECE_BYTES = 1 << 20
# Records that a thread reads before it decodes the first of them.
_READ_TOGETHER = 8

# In the place of pixels that are not needed any more.
_MADE = np.empty((0, 0, 3), np.uint8)

# (row, attempt) -> number of the record that stands in for one that can't be used.
Replacement = Callable[[int, int], int]

# (number of the record, record) -> what fields keep of it by their keys, or why it can't be used.
Examine = Callable[[int, Record], dict[str, Any] | BadRecord]
# (number of the record, numbers that its row draws) -> the numbers of its image ops.
Numbers = Callable[[int, np.ndarray], np.ndarray]


class _Read(NamedTuple):
    """A record that can be used if its picture can.

    Attributes:
      image: encoded bytes.
      record: the record, without image bytes and meta.
      extras: what fields keep of it.
    """

    image: bytes
    record: Record
    extras: Mapping[str, Any]


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
      board: where its threads note what they are doing.
      replays: for views whose ops' numbers are kept with the records, how they are got.
      need_pixels: decode whole pictures also where there is no view.

    Attributes:
      stats: counts of bad records.
      board: see above.
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
        board: Board | None = None,
        replays: Mapping[str, Numbers] | None = None,
        need_pixels: bool = False,
    ):
        self._source = source
        self._replays = dict(replays or {})
        self._need_pixels = need_pixels
        self._views = dict(views)
        sizes = {chain.image_size for chain in views.values()}
        self._largest = max(sizes, default=0)
        # Rows handled together: few enough for their planes to stay in a CPU's own cache, as each
        # op goes through all of them.
        self._in_cache = max(1, _PIECE_BYTES // (4 * 3 * max(1, self._largest**2)))
        # With several sizes, no image has the final shape of all views.
        block_side = self._largest if len(sizes) == 1 else 0
        self._keeps_square = bool(block_side) and all(c.keeps_square for c in views.values())
        self._cache = DecodedCache(len(source), block_side, int(cache_decoded_mb * 2**20))
        self._texts_of = texts_of or (lambda record: record.texts)
        self._need_texts = need_texts
        self._examine = examine
        self._backend: Backend = Pillow() if backend is None else backend
        self._num_threads = num_threads or num_cpus()
        keep_freed_memory()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self.stats = RecordStats(what)
        self.board = Board(self._num_threads + 8) if board is None else board

    def load(
        self,
        index: int,
        draws: Mapping[str, np.ndarray],
        read: _Read | BadRecord | None = None,
    ) -> Loaded | BadRecord:
        """Read and decode one record; bad ones are counted.

        Args:
          index: number of the record.
          draws: the random numbers of its views, float32[num_draws] each: a backend may decode no
            more of it than they will show.
          read: what :meth:`_read` has made of it, if it has.
        """
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        loaded: Loaded | BadRecord | None = self.stats.known(index)
        if loaded is None:
            loaded = self._load(index, draws, self._read(index) if read is None else read)
        if isinstance(loaded, BadRecord):
            self.stats.add(index, loaded)
        return loaded

    def _read(self, index: int) -> _Read | BadRecord:
        """A record and all of it but the picture, or why it can't be used."""
        self.board.note(READING, index)
        record = self._source[index]
        if isinstance(record, BadRecord):
            return record
        texts = self._texts_of(record)
        if not texts and self._need_texts:
            return BadRecord("empty_caption", "", record.key)
        extras = self._examine(index, record) if self._examine is not None else {}
        if isinstance(extras, BadRecord):
            return extras
        return _Read(record.image, Record(b"", texts, record.label, record.key), extras)

    def _load(
        self, index: int, draws: Mapping[str, np.ndarray], read: _Read | BadRecord
    ) -> Loaded | BadRecord:
        if isinstance(read, BadRecord):
            return read
        image, small, extras = read
        if not self._views and not self._need_pixels:
            return self._cache.put(Loaded(index, small, None, (0, 0), extras))
        self.board.note(DECODING, index)
        keep = False

        def cuts(size: Size) -> list[Cut]:
            nonlocal keep
            # What is decoded for these draws alone must not serve others.
            keep = self._cache.has_room(size) and self._backend.is_whole(size, self._largest)
            own = {key: self._numbers(key, index, u) for key, u in draws.items()}
            return [] if keep or self._need_pixels else self._cuts(size, own)

        picture = self._backend.decode(image, cuts)
        if isinstance(picture, BadRecord):
            return dataclasses.replace(picture, key=small.key)
        loaded = Loaded(index, small, picture.pixels, picture.size, extras, picture.shrink)
        return self._cache.put(loaded) if keep else loaded

    def _numbers(self, key: str, index: int, u: np.ndarray) -> np.ndarray:
        """The numbers of a view's ops, of what its row draws."""
        replay = self._replays.get(key)
        return u if replay is None else replay(index, u)

    def _cuts(self, size: Size, draws: Mapping[str, np.ndarray]) -> list[Cut]:
        """What the views cut out of a picture first; empty if one of them needs all of it."""
        cuts = [chain.first_cut(size, draws[key]) for key, chain in self._views.items()]
        return [] if None in cuts else [cut for cut in cuts if cut is not None]

    def batch(
        self,
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
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
            key: empty_pictures(len(indices), chain.image_size)
            for key, chain in self._views.items()
        }

        def fill(rows: range) -> list[Loaded | BadRecord]:
            if self._closed or interpreter_ends():
                raise Closed("reading was given up")
            return self._fill(rows, indices, draws, replacement, views)

        pieces = self._pieces(len(indices), max(self._in_cache, _READ_TOGETHER))
        if self._num_threads == 1 or len(pieces) == 1:
            filled = [fill(rows) for rows in pieces]
        else:
            filled = list(self._threads().map(fill, pieces))
        outcomes = [each for piece in filled for each in piece]
        for row in [row for row, each in enumerate(outcomes) if isinstance(each, BadRecord)]:
            for view in views.values():
                view[row] = 0
        return views, [None if isinstance(each, BadRecord) else each for each in outcomes]

    def outcomes(
        self,
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        views: Mapping[str, np.ndarray],
        *,
        singly: bool = False,
    ) -> list[Loaded | BadRecord]:
        """Records, or what is wrong with them; read in this thread, and none is replaced.

        Args:
          indices: int64[n], record numbers.
          draws: uniform numbers float32[n, num_draws] of each view.
          views: uint8[n, S, S, 3] of each view, written where a record can be used.
          singly: finish with each record before the next is begun.
        """
        count = len(indices)
        size = 1 if singly else max(self._in_cache, _READ_TOGETHER)
        pieces = _cut_up(range(count), size)
        found = [self._fill(rows, indices, draws, None, views) for rows in pieces]
        return [each for piece in found for each in piece]

    def _fill(
        self,
        rows: range,
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
        views: Mapping[str, np.ndarray],
    ) -> list[Loaded | BadRecord]:
        # Decoding drives all else out of a CPU's own cache, and then the little that is done for a
        # record takes several times as long. So it is done for some records at once.
        read = {}
        for index in indices[rows.start : rows.stop].tolist() if len(rows) > 1 else ():
            if self._cache.get(index) is None and self.stats.known(index) is None:
                read[index] = self._read(index)
        found = [
            self._fill_piece(piece, indices, draws, replacement, views, read)
            for piece in _cut_up(rows, self._in_cache)
        ]
        self.board.clear()
        return [each for piece in found for each in piece]

    def _fill_piece(
        self,
        rows: range,
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
        views: Mapping[str, np.ndarray],
        read: Mapping[int, _Read | BadRecord],
    ) -> list[Loaded | BadRecord]:
        chosen: list[int] = []
        numbers: list[int] = []
        pictures: list[Picture] = []
        outcomes: list[Loaded | BadRecord] = []
        for row in rows:
            own = {key: u[row] for key, u in draws.items()}
            loaded = self._usable(int(indices[row]), row, own, replacement, read)
            outcomes.append(loaded)
            if isinstance(loaded, Loaded) and loaded.pixels is not None:
                chosen.append(row)
                numbers.append(loaded.index)
                pictures.append(Picture(loaded.pixels, loaded.size, loaded.shrink))
        if chosen:
            self.board.note(IMAGE_OPS, int(indices[chosen[0]]))
            # A slice where it is possible: taking it is a view, and copying to it is faster.
            rows_of: Any = slice(rows.start, rows.stop) if len(chosen) == len(rows) else chosen
            for key in self._views:
                u = draws[key][rows_of]
                if key in self._replays:
                    u = np.stack(
                        [self._numbers(key, *pair) for pair in zip(numbers, u, strict=True)]
                    )
                if isinstance(rows_of, slice):
                    self._view(key, pictures, u, views[key][rows_of])
                else:
                    views[key][rows_of] = self._view(key, pictures, u)
        if not self._need_pixels:  # a batch of pictures would be kept for nothing
            outcomes = [_without_pixels(each) for each in outcomes]
        return outcomes

    def _pieces(self, count: int, size: int) -> list[range]:
        """Rows of so many at once, and fewer for all threads to have work to the end."""
        return _cut_up(range(count), min(size, -(-count // (2 * self._num_threads))))

    def _view(
        self, key: str, pictures: list[Picture], u: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8[n, S, S, 3] of a view of pictures, in ``out`` if that is given."""
        chain, cut = self._views[key], self._backend.cut
        cuts = [chain.first_cut(p.size, row) for p, row in zip(pictures, u, strict=True)]
        if cut is None or None in cuts:
            return chain([picture.pixels for picture in pictures], u, out=out)
        cut_out = [cut(p, c) for p, c in zip(pictures, cuts, strict=True) if c is not None]
        return chain(cut_out, u, first_done=True, out=out)

    def _usable(
        self,
        index: int,
        row: int,
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
        read: Mapping[int, _Read | BadRecord],
    ) -> Loaded | BadRecord:
        loaded = self.load(index, draws, read.get(index))
        for attempt in range(MAX_ATTEMPTS):
            if not isinstance(loaded, BadRecord) or replacement is None:
                return loaded
            loaded = self.load(replacement(row, attempt), draws)
        raise self.stats.hopeless(loaded)

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


def _cut_up(rows: range, size: int) -> list[range]:
    """Rows in pieces of a size; the last may be smaller."""
    size = max(1, size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _without_pixels(outcome: Loaded | BadRecord) -> Loaded | BadRecord:
    """A record whose views are made; that it had pixels is still to be seen."""
    if isinstance(outcome, BadRecord) or outcome.pixels is None:
        return outcome
    o = outcome  # dataclasses.replace takes three times as long
    return Loaded(o.index, o.record, _MADE, o.size, o.extras, o.shrink)


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
