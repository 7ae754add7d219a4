"""What a curation's configuration holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jaxclip.curate import source as source_lib
from jaxclip.curate.step import STEPS, Step, build
from jaxclip.registry import hint

DEFAULTS: dict[str, Any] = {
    "source": "",  # a data set, as training names it, or a folder of pictures
    "split": "",  # default: train, or the only one
    "steps": [],  # [{"name": "captions", "min_words": 3}, …], in their order
    "seed": 0,  # of all random decisions
    "shard_size": 8192,  # records that one task works on
}


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """A complete configuration.

    Args:
      config: any of the keys of :data:`DEFAULTS`.

    Raises:
      ValueError: an unknown key or a value of the wrong type.
    """
    result = {**DEFAULTS, **config}
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


def _maker(column: str) -> str:
    """Who makes a column that another step wants, for the error; empty if nobody does."""
    makers = (name for name in STEPS.names() if column in STEPS.get(name)().makes())
    return next((f"; put a step {name!r} before it" for name in makers), "")


def digest(value: Any) -> str:
    """Ten hex digits that tell one JSON value from another."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
