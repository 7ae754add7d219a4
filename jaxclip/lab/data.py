"""Pairs in memory: the pictures of a split decoded once, with the tokens of their first caption."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxclip.config import Config

EVAL_SPLIT = "test_style"


class Pairs(NamedTuple):
    """N pairs.

    Attributes:
      images: uint8[N, S, S, 3].
      tokens: int32[N, L].
      groups: int32[N], what a key's folder says (who drew the picture), numbered by appearance.
    """

    images: np.ndarray
    tokens: np.ndarray
    groups: np.ndarray


def load(config: Config, split: str) -> Pairs:
    """Read a split with the data and tokenizer of a training configuration.

    Raises:
      ValueError: an unknown split, or no pair that can be read.
      FileNotFoundError: the data set does not exist.
    """
    from jaxclip.data import pipeline, tokenizers

    tokenizer = tokenizers.load(config["tokenizer"])
    images, texts, keys = [], [], []
    for batch in pipeline.eval_batches(config["data"], split, batch_size=256):
        keep = [row for row in np.flatnonzero(batch["mask"]) if batch["texts"][row]]
        images.append(np.asarray(batch["image"])[keep])
        texts += [batch["texts"][row][0] for row in keep]
        keys += [batch["key"][row].rpartition("/")[0] for row in keep]
    if not texts:
        raise ValueError(
            f"data.name={config['data']['name']!r}: split {split!r} holds no pair that can be read"
        )
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    groups = np.asarray([numbers[key] for key in keys], np.int32)
    return Pairs(np.concatenate(images), np.asarray(tokenizer(texts), np.int32), groups)


def held_out(config: Config, size: int = 256) -> Pairs:
    """The first pairs of ``test_style``, or of the training split where there is no such split."""
    from jaxclip.data import sources

    splits = sources.open(config["data"]["name"]).splits
    split = EVAL_SPLIT if EVAL_SPLIT in splits else config["data"]["train_split"]
    pairs = load(config, split)
    return Pairs(*(array[:size] for array in pairs))
