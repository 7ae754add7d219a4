"""Batches of evaluation: every example of a split once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxclip.data import image_ops, loader, order, sources
from jaxclip.data.defaults import complete
from jaxclip.data.image_backend import BACKENDS
from jaxclip.data.image_chain import Chain
from jaxclip.data.iterator import Batch
from jaxclip.data.record import Record
from jaxclip.data.stages import Board


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
    rows = order.rows_per_process(batch_size, process_index, process_count, "batch_size")
    chain = image_ops.build(config["eval_image_ops"], config["image_size"])
    data_set = sources.open(config["name"])
    source = data_set.source(split)
    exact = {**config, "cache_decoded_mb": 0, "image_backend": "pillow"}
    record_loader = make_loader(exact, {"image": chain}, source, data_set)
    return _eval_batches(record_loader, chain, len(source), batch_size, process_index * rows, rows)


def _eval_batches(
    record_loader: loader.RecordLoader,
    chain: Chain,
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
            draws = {"image": uniforms[:count]}
            views, loaded = record_loader.batch(index[:count], draws, None)
            padding = np.zeros((rows - count, *views["image"].shape[1:]), np.uint8)
            images = np.concatenate([views["image"], padding])
            records = [None if each is None else each.record for each in loaded]
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


def make_loader(
    config: Mapping[str, Any],
    views: Mapping[str, Chain],
    source: sources.RecordSource,
    data_set: sources.DataSet,
    need_texts: bool = False,
    examine: loader.Examine | None = None,
    board: Board | None = None,
    replays: Mapping[str, loader.Numbers] | None = None,
    need_pixels: bool = False,
) -> loader.RecordLoader:
    """What reads a split as a config says; arguments as of :class:`.loader.RecordLoader`."""
    return loader.RecordLoader(
        source,
        views,
        what=data_set.in_words,
        cache_decoded_mb=config["cache_decoded_mb"],
        num_threads=config["num_parallel_calls"],
        texts_of=data_set.texts_of(config["languages"]),
        need_texts=need_texts,
        examine=examine,
        backend=BACKENDS.build(config["image_backend"]),
        board=board,
        replays=replays,
        need_pixels=need_pixels,
    )
