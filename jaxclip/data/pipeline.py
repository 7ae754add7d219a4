"""The input pipeline: records in, batches of arrays out.

Training: :func:`train_iterator`; what a batch holds is said by :mod:`jaxclip.fields`. What stands
in row ``r`` of step ``s`` (record, caption, and augmentation) is a function of
(seed, s * global_batch_size + r) and of the records, so training can stop anywhere and go on with
any number of hosts. Evaluation: :func:`eval_batches`, every example once, in order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip import fields
from jaxclip.data import columns, mixture, order, reading, sampling, sources, workers
from jaxclip.data.ahead import Ahead
from jaxclip.data.column import Column, Context
from jaxclip.data.defaults import DEFAULTS, complete
from jaxclip.data.eval_batches import eval_batches, make_loader
from jaxclip.data.image_backend import BACKENDS
from jaxclip.data.iterator import TrainIterator
from jaxclip.data.labels import read_labels
from jaxclip.data.order import rows_per_process
from jaxclip.data.stages import Board
from jaxclip.data.stored import write_stored

__all__ = [
    "DEFAULTS", "TrainIterator", "batch_maker", "check_spec", "complete", "eval_batches", "look_up",
    "rows_per_process", "train_iterator", "write_stored",
]  # fmt: skip

_LOG = logging.getLogger(__name__)


def check_spec(
    data_config: Mapping[str, Any],
    spec: fields.BatchSpec,
    *,
    owners: Mapping[str, str] | None = None,
) -> None:
    """Refuse what a data set can't have, before anything is started or compiled.

    What only some records lack is no error: they are replaced and counted. To find out what there
    is, a few records are read where the metadata do not say it.

    Args:
      data_config: see :data:`DEFAULTS`.
      spec: what a batch is to hold.
      owners: who wants which key, for errors: ``{"text": "objective 'clip'"}``.

    Raises:
      ValueError: an option that can't be, or a field that no record has; names the key and who
        wants it.
      FileNotFoundError: the data set does not exist.
    """
    _build_columns(complete(data_config), spec, 0, owners)


def _build_columns(
    config: Mapping[str, Any],
    spec: fields.BatchSpec,
    seed: int,
    owners: Mapping[str, str] | None = None,
) -> tuple[Context, dict[str, Column[Any]]]:
    context = Context(config, training_data(config), spec, seed)
    context.data_set.source(config["train_split"])
    context.data_set.texts_of(config["languages"])
    BACKENDS.build(config["image_backend"])
    sampling.check(config["sampling"])
    context.check_readable()
    group = config["examples_per_class"]
    if group > 1 and all(each.record.label < 0 for each in context.sample()):
        raise ValueError(
            f"data.examples_per_class={group} needs class labels, but {context} has none; set it "
            "to 1"
        )
    return context, columns.build(context, owners)


def train_iterator(
    data_config: Mapping[str, Any],
    *,
    tokenizer: Callable[[list[str]], np.ndarray],
    global_batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    spec: fields.BatchSpec = fields.PAIR,
    owners: Mapping[str, str] | None = None,
    passed_over: Sequence[Sequence[int]] = (),
) -> TrainIterator:
    """Training batches for steps ``start_step``, ``start_step + 1``, … without an end.

    Row ``r`` of a step is row ``r - process_index * b`` of process ``r // b``, where
    ``b = global_batch_size // process_count``. A batch may run across the border of two epochs; a
    data set smaller than a batch is repeated within it, with a warning. A record that cannot be
    used, or lacks what the batch is to hold of it, is replaced by another one, drawn by (seed,
    place), and counted. What a key holds does not depend on which other keys there are.

    Args:
      data_config: see :data:`DEFAULTS`.
      tokenizer: captions -> int32[n, L].
      global_batch_size: rows over all processes.
      seed: determines order, captions and augmentation.
      start_step: the first step; reaching it costs nothing.
      process_index: which part of each batch is made here.
      process_count: number of parts.
      spec: what a batch holds.
      owners: who wants which key, for errors.
      passed_over: ``[first, last]`` of batches that are left out, ascending and apart: a step gets
        batch :func:`jaxclip.data.order.batch_of` of the order.

    Returns:
      An iterator of dicts with the keys of ``spec``, arrays as :func:`jaxclip.fields.shapes` says
      for ``b`` rows: by default ``{"image": uint8[b, S, S, 3], "text": int32[b, L]}``. It has
      ``stats()`` and ``close()``.

    Raises:
      ValueError: an unknown key or op, a missing split, an empty data set, one that lacks what
        ``spec`` wants (see :func:`check_spec`), or a batch that does not divide.
      FileNotFoundError: the data set does not exist.
    """
    if start_step < 0:
        raise ValueError(f"start_step={start_step} must not be negative")
    maker = batch_maker(
        data_config, tokenizer, global_batch_size, seed, process_index, process_count, spec, owners
    )
    config, rows = complete(data_config), maker.rows
    # Two at once: one batch waits for files or the tokenizer while the other decodes. Threads
    # within a batch do the rest; more batches at once would only take more memory.
    ahead = Ahead(
        lambda step: maker(order.batch_of(step, passed_over)),
        start_step,
        num_threads=2,
        depth=max(1, config["prefetch"]),
        patience=config["stall_seconds"],
        waits_for=maker.reader.busy,
    )
    sizes = fields.Sizes(config["image_size"], tokenizer([""]).shape[1])
    shapes, counts = fields.known_shapes(spec, rows, sizes), maker.caption_counts
    return TrainIterator(shapes, start_step, ahead, maker.reader, counts, maker.box_counts)


def batch_maker(
    data_config: Mapping[str, Any],
    tokenizer: Callable[[list[str]], np.ndarray],
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    spec: fields.BatchSpec = fields.PAIR,
    owners: Mapping[str, str] | None = None,
) -> columns.BatchMaker:
    """What makes the rows of one process: number of a batch -> its arrays.

    It needs no TensorFlow and makes nothing ahead; ``reader.close()`` stops its threads and
    workers. Arguments and errors are those of :func:`train_iterator`.
    """
    config = complete(data_config)
    rows = rows_per_process(global_batch_size, process_index, process_count, "global_batch_size")
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    context, made = _build_columns(config, spec, seed, owners)
    data_set, split = context.data_set, config["train_split"]
    source = data_set.source(split)
    if len(source) < global_batch_size:
        _LOG.warning(
            "split %r of %r has %d records, fewer than a batch of %d: each batch repeats some",
            split, data_set.name, len(source), global_batch_size,
        )  # fmt: skip
    # Before the reader, which may start processes: what is wrong with the order leaves none behind.
    places = _order(config, data_set, global_batch_size, seed)
    return columns.BatchMaker(
        columns=made,
        reader=_reader(context, made, rows),
        order=places,
        seed=seed,
        first_row=process_index * rows,
        rows=rows,
        global_batch_size=global_batch_size,
        tokenizer=tokenizer,
    )


def _reader(
    context: Context, made: Mapping[str, Column[Any]], rows: int
) -> reading.InProcess | workers.WorkerReader:
    """What reads the records of batches and makes their views."""
    if context.config["workers"]:
        sides = {key: chain.image_size for key, chain in columns.chains(made).items()}
        return workers.WorkerReader(
            context.config, context.spec, context.seed, sides, rows, context.data_set.in_words
        )
    return _in_process(context, made)


def _in_process(
    context: Context, made: Mapping[str, Column[Any]], board: Board | None = None
) -> reading.InProcess:
    spec, chains = context.spec, columns.chains(made)
    needs_texts = any(isinstance(f, fields.Captions) and not f.source for f in spec.values())
    source = context.data_set.source(context.split)
    record_loader = make_loader(
        context.config,
        chains,
        source,
        context.data_set,
        needs_texts,
        columns.examiner(made),
        board,
        columns.replays(made),
        need_pixels=any(isinstance(field, fields.Patches) for field in spec.values()),
    )
    return reading.InProcess(record_loader, columns.num_draws(made), context.seed)


def local_reader(
    config: Mapping[str, Any], spec: fields.BatchSpec, seed: int, board: Board
) -> reading.InProcess:
    """What a data worker reads with; nothing is checked that its parent has checked.

    Args:
      config: data config, complete.
      spec: what a batch holds.
      seed: of the run.
      board: where the worker's threads note what they are doing.
    """
    context = Context(config, training_data(config), spec, seed)
    return _in_process(context, columns.build(context, look=False), board)


def look_up(
    data_config: Mapping[str, Any],
    *,
    tokenizer: Callable[[list[str]], np.ndarray],
    global_batch_size: int,
    seed: int,
    batch: int,
    rows: Sequence[int],
    spec: fields.BatchSpec = fields.PAIR,
) -> list[dict[str, Any]]:
    """What stood in some rows of a batch, as training saw it; nothing need have been kept of it.

    Args:
      data_config: see :data:`DEFAULTS`.
      tokenizer: of the run.
      global_batch_size: rows over all processes.
      seed: of the run.
      batch: its number in the order.
      rows: places within the global batch.
      spec: what a batch holds.

    Returns:
      ``{"row", "record": its number, "key": the record's, "caption", "image": uint8[S, S, 3]}`` of
      each row.
    """
    maker = batch_maker(
        {**data_config, "cache_decoded_mb": 0, "workers": 0},
        tokenizer,
        global_batch_size,
        seed,
        0,
        1,
        spec,
        None,
    )
    try:
        found = maker.examples(batch, rows)
    finally:
        maker.reader.close()
    return [
        {"row": int(row), "record": loaded.index, "key": loaded.record.key, "caption": caption,
         "image": image}
        for row, (loaded, caption, image) in zip(rows, found, strict=True)
    ]  # fmt: skip


def training_data(config: Mapping[str, Any]) -> sources.DataSet:
    """What is trained on: the data set ``name``, or the mixture.

    Args:
      config: complete data config.

    Raises:
      ValueError: as :func:`jaxclip.data.mixture.parts` or :func:`jaxclip.data.sources.open`.
      FileNotFoundError: a data set that does not exist.
    """
    if not config["mixture"]:
        return sampling.narrowed(config["sampling"], sources.open(config["name"]))
    split = config["train_split"]
    return mixture.Mixture(mixture.parts(config["mixture"], sources.open, split), split)


def _order(
    config: Mapping[str, Any], data_set: sources.DataSet, global_batch_size: int, seed: int
) -> order.ShuffledOrder | mixture.MixtureOrder | sampling.SampledOrder:
    split, group = config["train_split"], config["examples_per_class"]
    size, window, chunk = (
        data_set.splits[split], config["shuffle_window"], config["shuffle_chunk"],
    )  # fmt: skip
    written = config["sampling"]
    if written and (group > 1 or isinstance(data_set, mixture.Mixture)):
        other = (
            "data.mixture, whose sources may have one each"
            if group == 1
            else ("data.examples_per_class above 1")
        )
        raise ValueError(f"data.sampling={written!r} does not go with {other}")
    if isinstance(data_set, mixture.Mixture):
        if group > 1:
            raise ValueError(
                f"data.examples_per_class={group} is not for data.mixture; set it to 1"
            )
        return data_set.order(seed, window, chunk)
    weights = sampling.weights_of(written, data_set, split)
    if weights is not None:
        return sampling.SampledOrder(weights, seed, window, chunk)
    if group == 1:
        return order.ShuffledOrder(size, seed, window, chunk)
    if global_batch_size % group:
        raise ValueError(
            f"global_batch_size={global_batch_size} must be a multiple of "
            f"data.examples_per_class={group}"
        )
    labels = read_labels(data_set, split)
    return order.GroupedOrder(size, seed, labels, group, window, chunk)
