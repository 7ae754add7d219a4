"""Section ``data`` of a configuration with its defaults, and what follows from a kind of tokenizer;
importing it needs neither pictures nor TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxclip.data import order
from jaxclip.registry import hint

DEFAULTS: dict[str, Any] = {
    "name": "emoji",  # or a TFDS directory, "tfds:NAME", "webdataset:/path/{000..009}.tar", …
    "train_split": "train",
    "mixture": [],  # trained on in place of name: [{"name", "split", "weight", "languages", …}]
    "image_size": 64,
    "patch_counts": [],  # pictures in their own aspect ratio, as so many patches (NaFlex)
    "image_ops": "resize",  # a string "op(args)|op", see jaxclip.data.image_ops
    "eval_image_ops": "resize",
    "image_backend": "pillow",  # what decodes for training: "pillow", or "fast"
    "image_mean": [0.5, 0.5, 0.5],  # of pixels in [0, 1]; used in the train step
    "image_std": [0.5, 0.5, 0.5],
    "languages": ["en"],  # of the captions; where a data set has more than one
    "examples_per_class": 1,  # records of a class that stand together in a batch
    "sampling": "",  # "column('weight')", "file('w.npy')" or "classes(power=0.5)"; empty: uniform
    "shuffle_window": order.DEFAULT_WINDOW,  # records shuffled together
    "shuffle_chunk": order.DEFAULT_CHUNK,  # consecutive records that stay in one window
    "cache_decoded_mb": 512,  # decoded images kept in memory, up to this much
    "max_unusable": 0.5,  # share of the records drawn that may be unusable before the run stops
    "num_parallel_calls": 0,  # threads that read and decode; 0 = one for each CPU
    "workers": 0,  # processes that do the work of these threads; 0 = threads of this process
    "prefetch": 2,  # batches made ahead
    "stall_seconds": 60.0,  # of waiting for a batch until what it waits for is logged; 0 = never
}

_CONTEXT_LENGTHS = {"clip": 77, "siglip": 64, "gemma": 64, "roberta": 77}


def context_length(kind: str) -> int:
    """Tokens in a row where nothing else is configured: as the models of this kind have it."""
    return _CONTEXT_LENGTHS.get(kind, 32)


def pad_id(kind: str) -> int:
    """The id that a kind of tokenizer pads with."""
    return 1 if kind in ("siglip", "roberta") else 0


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data config with the defaults filled in.

    Raises:
      ValueError: an unknown key, naming the nearest, or a value out of range.
    """
    for key in config:
        if key not in DEFAULTS:
            raise ValueError(f"unknown data config key {key!r}{hint(key, DEFAULTS)}")
    result = {**DEFAULTS, **config}
    for key in ("image_size", "examples_per_class", "shuffle_window", "shuffle_chunk"):
        if result[key] < 1:
            raise ValueError(f"data.{key}={result[key]} must be at least 1")
    for key in ("cache_decoded_mb", "num_parallel_calls", "prefetch", "workers", "stall_seconds"):
        if result[key] < 0:
            raise ValueError(f"data.{key}={result[key]} must not be negative")
    return result
