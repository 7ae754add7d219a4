"""The input pipeline: records in, batches of uint8 images and token ids out.

Training: :func:`train_iterator`. What stands in row ``r`` of step ``s`` (record, caption, and
augmentation) is a function of (seed, s * global_batch_size + r) and of the records, so training can
stop anywhere and go on with any number of hosts. Evaluation: :func:`eval_batches`, every example
once, in order.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxclip.data import image_ops, loader, order, sources
from jaxclip.data.defaults import DEFAULTS as DEFAULTS
from jaxclip.data.record import Record

_LOG = logging.getLogger(__name__)

Batch = dict[str, Any]

# The caption is drawn with the first uniform number of an example, the image ops take the others.
_CAPTION_DRAWS = 1


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data config with the defaults filled in.

    Raises:
      ValueError: an unknown key, naming the nearest, or a value out of range.
    """
    for key in config:
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DEFAULTS)}"
            raise ValueError(f"unknown data config key {key!r}; {hint}")
    result = {**DEFAULTS, **config}
    for key in ("image_size", "shuffle_window", "shuffle_chunk"):
        if result[key] < 1:
            raise ValueError(f"data.{key}={result[key]} must be at least 1")
    for key in ("cache_decoded_mb", "num_parallel_calls", "prefetch"):
        if result[key] < 0:
            raise ValueError(f"data.{key}={result[key]} must not be negative")
    return result


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


class TrainIterator(Iterator[Batch]):
    """Batches of consecutive steps, without an end; made by :func:`train_iterator`."""

    def __init__(self, dataset: Any, record_loader: loader.RecordLoader):
        self._iterator = dataset.as_numpy_iterator()
        self._loader = record_loader

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def stats(self) -> dict[str, dict[str, int]]:
        """Bad records met so far (also by steps made ahead).

        Returns:
          ``{"records": {reason: distinct records}, "uses": {reason: times one was drawn}}``.
        """
        return self._loader.stats.as_dict()

    def close(self) -> None:
        """Stop reading ahead."""
        self._iterator = iter(())
        self._loader.close()


def train_iterator(
    data_config: Mapping[str, Any],
    *,
    tokenizer: Callable[[list[str]], np.ndarray],
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Training batches for steps ``start_step``, ``start_step + 1``, … without an end.

    Row ``r`` of a step is row ``r - process_index * b`` of process ``r // b``, where
    ``b = global_batch_size // process_count``. A batch may run across the border of two epochs; a
    data set smaller than a batch is repeated within it, with a warning. A record that cannot be
    used is replaced by another one, drawn by (seed, place), and counted.

    Args:
      data_config: see :data:`DEFAULTS`.
      tokenizer: captions -> int32[n, L].
      global_batch_size: rows over all processes.
      seed: determines order, captions and augmentation.
      start_step: the first step; reaching it costs nothing.
      process_index: which part of each batch is made here.
      process_count: number of parts.

    Returns:
      An iterator of ``{"image": uint8[b, S, S, 3], "text": int32[b, L]}``, with ``stats()`` and
      ``close()``.

    Raises:
      ValueError: an unknown key or op, a missing split, an empty data set, one without captions, or
        a batch that does not divide.
      FileNotFoundError: the data set does not exist.
    """
    config = complete(data_config)
    rows = rows_per_process(global_batch_size, process_index, process_count, "global_batch_size")
    if seed < 0 or start_step < 0:
        raise ValueError(f"seed={seed} and start_step={start_step} must not be negative")
    chain = image_ops.build(config["image_ops"], config["image_size"])
    data_set = sources.open(config["name"])
    source = data_set.source(config["train_split"])
    if len(source) < global_batch_size:
        _LOG.warning(
            "split %r of %r has %d records, fewer than a batch of %d: each batch repeats some",
            config["train_split"], config["name"], len(source), global_batch_size,
        )  # fmt: skip
    record_loader = _loader(config, chain, source, data_set)
    maker = _BatchMaker(
        loader=record_loader,
        order=order.ShuffledOrder(
            len(source), seed, config["shuffle_window"], config["shuffle_chunk"]
        ),
        seed=seed,
        num_draws=_CAPTION_DRAWS + chain.num_draws,
        first_row=process_index * rows,
        rows=rows,
        global_batch_size=global_batch_size,
        tokenizer=tokenizer,
    )
    return TrainIterator(_dataset(maker, config, start_step), record_loader)


@dataclasses.dataclass
class _BatchMaker:
    """Makes this process's rows of a step."""

    loader: loader.RecordLoader
    order: order.ShuffledOrder
    seed: int
    num_draws: int
    first_row: int
    rows: int
    global_batch_size: int
    tokenizer: Callable[[list[str]], np.ndarray]

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8[b, S, S, 3] and tokens int32[b, L]."""
        first = int(step) * self.global_batch_size + self.first_row
        places = np.arange(first, first + self.rows, dtype=np.int64)
        uniforms = order.uniforms(self.seed, places, self.num_draws)
        images, records = self.loader.batch(
            self.order(places),
            uniforms[:, _CAPTION_DRAWS:],
            lambda row, attempt: self.order.replacement(first + row, attempt),
        )
        captions = [
            _draw(record, float(u)) for record, u in zip(records, uniforms[:, 0], strict=True)
        ]
        return images, np.asarray(self.tokenizer(captions), np.int32)


def _draw(record: Record | None, u: float) -> str:
    assert record is not None  # with replacements on, every row has a record
    return record.texts[min(int(u * len(record.texts)), len(record.texts) - 1)]


def _dataset(maker: _BatchMaker, config: Mapping[str, Any], start_step: int) -> Any:
    """The tf.data graph: step numbers -> batches, made ahead and handed out in order.

    Decoding and image ops run in threads of :class:`loader.RecordLoader`, not as TensorFlow ops:
    these were two to five times slower on small images, cannot replace a record that does not
    decode, and differ in the last bits with the size of the batch.
    """
    from jaxclip.data._tfds import tensorflow

    tf = tensorflow()
    length = maker.tokenizer([""]).shape[1]
    size = config["image_size"]

    def make(step: Any) -> Batch:
        image, text = tf.numpy_function(maker, [step], (tf.uint8, tf.int32), stateful=False)
        image.set_shape((maker.rows, size, size, 3))
        text.set_shape((maker.rows, length))
        return {"image": image, "text": text}

    dataset = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    # Two at once: one batch waits for files or the tokenizer while the other decodes. Threads
    # within a batch do the rest; more batches at once would only take more memory.
    dataset = dataset.map(make, num_parallel_calls=2, deterministic=True)
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    return dataset.prefetch(max(1, config["prefetch"])).with_options(options)


def eval_batches(
    data_config: Mapping[str, Any],
    split: str,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example of a split exactly once, in order.

    Batch ``i`` over all processes is examples ``i * batch_size`` and following; process ``p`` gets
    rows ``[p * n, (p + 1) * n)`` of it, ``n = batch_size // process_count``. All processes get the
    same number of batches of the same shape; rows beyond the end have mask False, and so have
    records that cannot be decoded (these keep their index; they are logged).

    Args:
      data_config: see :data:`DEFAULTS`; of the ops only ``eval_image_ops`` are used.
      split: name of the split.
      batch_size: rows over all processes.
      process_index: which part of each batch is made here.
      process_count: number of parts.

    Yields:
      ``{"image": uint8[n, S, S, 3], "mask": bool[n], "index": int64[n] (-1 where beyond the end),
      "label": int64[n] (-1 = none), "texts": list of n lists of str, "key": list of n str}``.

    Raises:
      ValueError: as in :func:`train_iterator`.
      FileNotFoundError: the data set does not exist.
    """
    config = complete(data_config)
    rows = rows_per_process(batch_size, process_index, process_count, "batch_size")
    chain = image_ops.build(config["eval_image_ops"], config["image_size"])
    data_set = sources.open(config["name"])
    source = data_set.source(split)
    record_loader = _loader({**config, "cache_decoded_mb": 0}, chain, source, data_set, False)
    return _eval_batches(record_loader, chain, len(source), batch_size, process_index * rows, rows)


def _eval_batches(
    record_loader: loader.RecordLoader,
    chain: image_ops.Chain,
    num_records: int,
    batch_size: int,
    first_row: int,
    rows: int,
) -> Iterator[Batch]:
    try:
        for start in range(0, num_records, batch_size):
            index = np.arange(start + first_row, start + first_row + rows, dtype=np.int64)
            index[index >= num_records] = -1
            inside = index >= 0
            count = int(inside.sum())
            # Random ops are allowed in evaluation, too: what they draw depends on the example only.
            uniforms = order.uniforms(0, index, chain.num_draws)
            images, records = record_loader.batch(index[:count], uniforms[:count], None)
            padding = np.zeros((rows - count, *images.shape[1:]), np.uint8)
            images = np.concatenate([images, padding])
            padded: list[Record | None] = [*records, *[None] * (rows - count)]
            yield {
                "image": images,
                "mask": np.array([record is not None for record in padded], bool),
                "index": index,
                "label": np.array([r.label if r else -1 for r in padded], np.int64),
                "texts": [list(record.texts) if record else [] for record in padded],
                "key": [record.key if record else "" for record in padded],
            }
    finally:
        record_loader.close()


def _loader(
    config: Mapping[str, Any],
    chain: image_ops.Chain,
    source: sources.RecordSource,
    data_set: sources.DataSet,
    need_texts: bool = True,
) -> loader.RecordLoader:
    return loader.RecordLoader(
        source,
        chain,
        what=f"data set {data_set.name!r}",
        cache_decoded_mb=config["cache_decoded_mb"],
        num_threads=config["num_parallel_calls"],
        texts_of=data_set.texts_of(config["languages"]),
        need_texts=need_texts,
    )
