"""What a curation's configuration holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.curate import source as source_lib
from jaxclip.curate.step import Step, build
from jaxclip.registry import hint

DEFAULTS: dict[str, Any] = {
    "source": "",  # a data set, as training names it, or a folder of pictures
    "split": "",  # default: train, or the only one
    "steps": [],  # [{"name": "captions", "min_words": 3}, …], in their order
    "seed": 0,  # of all random decisions
    "shard_size": 8192,  # records that one task works on
}


def resolve(config: Mapping[str, Any], overrides: Sequence[tuple[str, Any]] = ()) -> dict[str, Any]:
    """A complete configuration.

    Args:
      config: any of the keys of :data:`DEFAULTS`.
      overrides: ``(key, value)``, laid over it.

    Raises:
      ValueError: an unknown key or a value of the wrong type.
    """
    result = {**DEFAULTS, **config, **dict(overrides)}
    for key, value in result.items():
        if key not in DEFAULTS:
            raise ValueError(f"unknown key {key!r} of a curation{hint(key, DEFAULTS)}")
        kind = type(DEFAULTS[key])
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{key}={value!r} must be {kind.__name__}, as {DEFAULTS[key]!r}")
    if not result["source"]:
        raise ValueError("source is missing: name a data set or a folder of pictures")
    if result["shard_size"] < 1:
        raise ValueError(f"shard_size={result['shard_size']} must be at least 1")
    result["source"] = source_lib.absolute(result["source"])
    return result


def build_steps(config: Mapping[str, Any]) -> list[Step]:
    """The steps, checked on their own and for what they need of each other.

    Raises:
      ValueError, FileNotFoundError: a mistake; the message says in which step.
    """
    steps = [build(given, f"steps[{number}]") for number, given in enumerate(config["steps"])]
    made: dict[str, str] = {}
    for number, step in enumerate(steps):
        for column in step.wants():
            if column not in made:
                raise ValueError(
                    f"steps[{number}]: {step.name!r} needs the column {column!r}, which no step "
                    f"before it makes{_maker(column) or hint(column, made)}"
                )
        made.update(dict.fromkeys(step.makes(), step.name))
    return steps


# Who makes columns that others want, for errors.
_MAKERS = {
    "image": "embeddings", "text": "embeddings", "entries": "match", "cluster": "cluster",
    "centroid_distance": "cluster", "clip_score": "clip_score", "prompt_score": "prompt_score",
}  # fmt: skip


def _maker(column: str) -> str:
    return f"; put a step {_MAKERS[column]!r} before it" if column in _MAKERS else ""


def options_of(step: Step) -> dict[str, Any]:
    """Its options as JSON; what has no bound has none there."""
    options = json.loads(json.dumps(dataclasses.asdict(step)))
    return {k: None if v in (math.inf, -math.inf) else v for k, v in options.items()}


def digest(value: Any) -> str:
    """Ten hex digits that tell one JSON value from another."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
