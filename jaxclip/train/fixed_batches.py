"""Batches of a run's data that stay the same, for measures of its loss."""

from __future__ import annotations

import contextlib

import numpy as np

from jaxclip import fields
from jaxclip.config import Config
from jaxclip.train import checks

TOWERS = ("image", "text")


def fixed_batches(
    config: Config, split: str, batches: int, batch_size: int, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Batches of pairs of a split, shuffled, with the image ops of evaluation.

    Args:
      config: resolved configuration.
      split: its name; empty for that of training.
      batches: at most so many; fewer where the split has no more.
      batch_size: B.
      seed: of the order.

    Returns:
      ``image`` uint8[N, B, S, S, 3] and ``text`` int32[N, B, L].

    Raises:
      ValueError: no such split, or one of fewer records than a batch.
    """
    from jaxclip.data import pipeline

    data = {**config["data"], "image_ops": config["data"]["eval_image_ops"]}
    if split:
        data |= {"train_split": split, "mixture": []}
    complete = pipeline.complete(data)
    data_set = pipeline.training_data(complete)
    records = len(data_set.source(complete["train_split"]))
    if records < batch_size:
        raise ValueError(
            f"split {complete['train_split']!r} has {records} records, fewer than a batch of "
            f"{batch_size}; use a batch size of {records} or less"
        )
    iterator = pipeline.train_iterator(
        {**data, "cache_decoded_mb": 0, "examples_per_class": 1},
        tokenizer=checks.load_tokenizer(config),
        global_batch_size=batch_size,
        seed=seed,
        spec=fields.PAIR,
    )
    with contextlib.closing(iterator):
        made = [next(iterator) for _ in range(min(batches, records // batch_size))]
    return {name: np.stack([each[name] for each in made]) for name in TOWERS}
