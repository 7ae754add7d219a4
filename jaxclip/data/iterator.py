"""The training iterator: tf.data hands over what :mod:`jaxclip.data.ahead` makes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.data.ahead import Ahead, Closed
from jaxclip.data.reading import Reader
from jaxclip.data.record import BadRecord

Batch = dict[str, Any]


class TrainIterator(Iterator[Batch]):
    """Batches of consecutive steps, without an end; made by :func:`train_iterator`.

    A program that ends with it open ends all the same. It is closed when nobody holds it any more.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[tuple[int | None, ...], str]],
        start_step: int,
        ahead: Ahead,
        reader: Reader,
        caption_counts: Callable[[], dict[str, int]],
        box_counts: Callable[[], dict[str, int]] = dict,
    ):
        # TensorFlow may keep a function for as long as the process lives, so what it is given leads
        # to the batches and to the cache of pictures only while this object is open.
        source = [ahead]
        self._iterator = _dataset(shapes, source, start_step).as_numpy_iterator()
        self._source = source
        self._stats = reader.stats
        self._caption_counts = caption_counts
        self._box_counts = box_counts
        self._release = weakref.finalize(self, _release, source, reader)
        self._release.atexit = False

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except Exception:
            error = self._source[0].error if self._source else None
            if error is not None:  # not TensorFlow's account of it
                raise error from None
            raise

    @property
    def drawn(self) -> int:
        """How many records were drawn so far that could be used."""
        return self._stats.drawn

    def bad_records(self) -> list[tuple[int, BadRecord]]:
        """Bad records met so far, with their numbers; the first hundred thousand of them."""
        return self._stats.bad()

    def stats(self) -> dict[str, dict[str, int]]:
        """What was met so far (also by steps made ahead): bad records, and what captions are like.

        Returns:
          ``{"records": {reason: distinct records}, "uses": {reason: times one was drawn},
          "captions": {"drawn": …, "fill": …, "equal": …}}``; the last as
          :meth:`.columns.BatchMaker.caption_counts` has it. With boxes ``"boxes": {"boxes": …,
          "outside": …}``: how many there were, and how many of them fell out of the picture.
        """
        boxes = self._box_counts()
        counts = {"captions": self._caption_counts(), **({"boxes": boxes} if boxes else {})}
        return {**self._stats.as_dict(), **counts}

    def close(self) -> None:
        """Stop reading ahead, and let go of the cache."""
        self._iterator = iter(())
        self._release()


def _release(source: list[Ahead], reader: Reader) -> None:
    while source:
        source.pop().close()
    reader.close()


def _dataset(
    shapes: Mapping[str, tuple[tuple[int | None, ...], str]],
    source: Sequence[Ahead],
    start_step: int,
) -> Any:
    """The tf.data graph: step numbers -> batches.

    Batches are made by threads of :class:`Ahead` and :class:`.reading.Reader`, not as
    TensorFlow ops: these were two to five times slower on small images, cannot replace a record
    that does not decode, and differ in the last bits with the size of the batch. tf.data starts no
    thread that calls Python, see :mod:`jaxclip.data.ahead`.
    """
    from jaxclip.data._tfds import tensorflow

    tf = tensorflow()
    types = [tf.as_dtype(dtype) for _, dtype in shapes.values()]

    def take(step: Any) -> list[np.ndarray]:
        if not source:
            raise Closed("the iterator is closed")
        arrays = source[0].take(int(step))
        return [np.ascontiguousarray(arrays[key]) for key in shapes]

    def make(step: Any) -> Batch:
        arrays = tf.numpy_function(take, [step], types, stateful=False)
        for array, (shape, _) in zip(arrays, shapes.values(), strict=True):
            array.set_shape(shape)
        return dict(zip(shapes, arrays, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return dataset.map(tf.autograph.experimental.do_not_convert(make)).with_options(options)
