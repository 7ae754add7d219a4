"""From record numbers to pixels and captions: reading, decoding, caching, counting what is bad."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxclip.data.ahead import Closed, interpreter_ends
from jaxclip.data.dataset import RecordSource
from jaxclip.data.decoded_cache import DecodedCache, Loaded
from jaxclip.data.image_backend import Backend, Decode, Picture, Pillow
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

T = TypeVar("T")

# (row, attempt) -> number of the record that stands in for one that can't be used.
Replacement = Callable[[int, int], int]

# (number of the record, record) -> what fields keep of it by their keys, or why it can't be used.
Examine = Callable[[int, Record], dict[str, Any] | BadRecord]
# (number of the record, numbers that its row draws) -> the numbers of its image ops.
Numbers = Callable[[int, np.ndarray], np.ndarray]


class _Read(NamedTuple):
    """A record that can be used if its picture can.

    Attributes:
      number: of the record.
      record: the record, without image bytes and meta.
      extras: what fields keep of it.
      decode: makes its picture; None if none is wanted.
    """

    number: int
    record: Record
    extras: Mapping[str, Any]
    decode: Decode | None


# A record, or what is known of one already.
_Found = _Read | Loaded | BadRecord


class _Row(NamedTuple):
    """A row of a batch.

    Attributes:
      row: its number.
      number: of its record.
      draws: its random numbers, float32[num_draws] of each view.
      found: its record.
    """

    row: int
    number: int
    draws: Mapping[str, np.ndarray]
    found: _Found


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
        self._backend: Backend = Pillow() if backend is None else backend
        sizes = {chain.image_size for chain in views.values()}
        self._largest = max(sizes, default=0)
        # Views whose first op the backend does; if it does all, no picture is kept for longer.
        self._cut = {key for key, chain in views.items() if chain.cuts_first and self._backend.cut}
        self._cut_first = len(self._cut) == len(views) and not need_pixels
        # Rows whose planes stay in a CPU's own cache, as each op goes through all of them.
        self._in_cache = max(1, _PIECE_BYTES // (4 * 3 * max(1, self._largest**2)))
        self._together = max(self._in_cache, _READ_TOGETHER)
        has_planes = any(chain.has_planes for chain in views.values())
        self._shown_together = self._in_cache if has_planes else self._together
        # With several sizes, no image has the final shape of all views.
        block_side = self._largest if len(sizes) == 1 else 0
        self._keeps_square = bool(block_side) and all(c.keeps_square for c in views.values())
        self._cache = DecodedCache(len(source), block_side, int(cache_decoded_mb * 2**20))
        self._texts_of = texts_of or (lambda record: record.texts)
        self._need_texts = need_texts
        self._examine = examine
        self._num_threads = num_threads or num_cpus()
        keep_freed_memory()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self.stats = RecordStats(what)
        self.board = Board(self._num_threads + 8) if board is None else board

    def _read(self, index: int, draws: Mapping[str, np.ndarray]) -> _Found:
        """All that is done for a record before its picture is decoded.

        Args:
          index: number of the record.
          draws: the random numbers of its views, float32[num_draws] each: a backend may decode no
            more of it than they will show.
        """
        known = self._cache.get(index) or self.stats.known(index)
        if known is not None:
            return known
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
        decode = None
        if self._views or self._need_pixels:
            cuts = functools.partial(self._cuts, index, draws)
            decode = self._backend.prepare(record.image, cuts)
        return _Read(index, Record(b"", texts, record.label, record.key), extras, decode)

    def _decoded(self, read: _Read) -> Loaded | BadRecord:
        if read.decode is None:
            return self._cache.put(Loaded(read.number, read.record, None, (0, 0), read.extras))
        self.board.note(DECODING, read.number)
        picture = read.decode()
        if isinstance(picture, BadRecord):
            return dataclasses.replace(picture, key=read.record.key)
        pixels, size, shrink = picture
        loaded = Loaded(read.number, read.record, pixels, size, read.extras, shrink)
        return self._cache.put(loaded) if self._keeps(size) else loaded

    def _keeps(self, size: Size) -> bool:
        """Whether a picture is kept; if not now, then never."""
        return self._cache.has_room(size) and self._backend.is_whole(size, self._largest)

    def _numbers(self, key: str, index: int, u: np.ndarray) -> np.ndarray:
        """The numbers of a view's ops, of what its row draws."""
        replay = self._replays.get(key)
        return u if replay is None else replay(index, u)

    def _cuts(self, index: int, draws: Mapping[str, np.ndarray], size: Size) -> list[Cut]:
        """What the views cut out of a picture first; empty if one needs all of it, or others do."""
        # What is decoded for these draws alone must not serve others.
        if not self._cut_first or self._keeps(size):
            return []
        cuts = [
            chain.first_cut(size, self._numbers(key, index, draws[key]))
            for key, chain in self._views.items()
        ]
        return [cut for cut in cuts if cut is not None]

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

        def fill(rows: Sequence[int]) -> list[Loaded | BadRecord]:
            if self._closed or interpreter_ends():
                raise Closed("reading was given up")
            return self._fill(rows, indices, draws, replacement, views)

        pieces = self._pieces(len(indices), self._together)
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
        size = 1 if singly else self._together
        pieces = _cut_up(range(count), size)
        found = [self._fill(rows, indices, draws, None, views) for rows in pieces]
        return [each for piece in found for each in piece]

    def _fill(
        self,
        rows: Sequence[int],
        indices: np.ndarray,
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
        views: Mapping[str, np.ndarray],
    ) -> list[Loaded | BadRecord]:
        # Decoding drives all else out of a CPU's own cache, and then the little that is done for a
        # record takes several times as long. So what comes before decoding is done for some records
        # at once; so is what comes after it, unless that would keep many large pictures.
        begun = [self._begin(row, int(indices[row]), draws) for row in rows]
        found: list[Loaded | BadRecord] = []
        for piece in _cut_up(begun, self._together if self._cut_first else self._in_cache):
            found += self._fill_piece(piece, draws, replacement, views)
        self.board.clear()
        return found

    def _begin(self, row: int, index: int, draws: Mapping[str, np.ndarray]) -> _Row:
        own = {key: u[row] for key, u in draws.items()}
        return _Row(row, index, own, self._read(index, own))

    def _fill_piece(
        self,
        rows: Sequence[_Row],
        draws: Mapping[str, np.ndarray],
        replacement: Replacement | None,
        views: Mapping[str, np.ndarray],
    ) -> list[Loaded | BadRecord]:
        outcomes: list[Loaded | BadRecord] = []
        shown: list[tuple[int, int, list[np.ndarray]]] = []
        for row in rows:
            loaded = self._usable(row, replacement)
            if isinstance(loaded, Loaded) and loaded.pixels is not None:
                shown.append((row.row, loaded.index, self._firsts(loaded, row.draws)))
                if not self._need_pixels:  # a batch of pictures would be kept for nothing
                    loaded = _without_pixels(loaded)
            outcomes.append(loaded)
        for piece in _cut_up(shown, self._shown_together):
            chosen, numbers, firsts = zip(*piece, strict=True)
            self.board.note(IMAGE_OPS, numbers[0])
            # A slice where it is possible: taking it is a view, and copying to it is faster.
            is_run = chosen[-1] - chosen[0] == len(chosen) - 1
            rows_of: Any = slice(chosen[0], chosen[-1] + 1) if is_run else list(chosen)
            for n, (key, chain) in enumerate(self._views.items()):
                u = draws[key][rows_of]
                if key in self._replays:
                    u = np.stack([self._numbers(key, *own) for own in zip(numbers, u, strict=True)])
                images = [each[n] for each in firsts]
                out = views[key][rows_of] if is_run else None
                made = chain(images, u, first_done=key in self._cut, out=out)
                if not is_run:
                    views[key][rows_of] = made
        return outcomes

    def _firsts(self, loaded: Loaded, draws: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """What the ops of each view begin with: a picture, or what is cut out of it."""
        assert loaded.pixels is not None
        picture, made = Picture(loaded.pixels, loaded.size, loaded.shrink), []
        for key, chain in self._views.items():
            do, cut = self._backend.cut, None
            if key in self._cut:
                cut = chain.first_cut(loaded.size, self._numbers(key, loaded.index, draws[key]))
            made.append(picture.pixels if do is None or cut is None else do(picture, cut))
        return made

    def _pieces(self, count: int, size: int) -> list[Sequence[int]]:
        """Rows of so many at once, and fewer for all threads to have work to the end."""
        return _cut_up(range(count), min(size, -(-count // (2 * self._num_threads))))

    def _usable(self, row: _Row, replacement: Replacement | None) -> Loaded | BadRecord:
        """The record of a row, or one that stands in for it; bad ones are counted."""
        index, found = row.number, row.found
        for attempt in range(MAX_ATTEMPTS):
            loaded = self._decoded(found) if isinstance(found, _Read) else found
            if not isinstance(loaded, BadRecord):
                return loaded
            self.stats.add(index, loaded)
            if replacement is None:
                return loaded
            index = replacement(row.row, attempt)
            found = self._read(index, row.draws)
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


def _cut_up(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    """Rows in pieces of a size; the last may be smaller."""
    size = max(1, size)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _without_pixels(loaded: Loaded) -> Loaded:
    """A record whose views are made; that it had pixels is still to be seen."""
    o = loaded  # dataclasses.replace takes three times as long
    return Loaded(o.index, o.record, _MADE, o.size, o.extras)


def num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
