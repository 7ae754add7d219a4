"""Values of a configuration that can't be: types, ranges, and what does not fit together.

Everything is told from the configuration alone, before a device is touched. What depends on the
machine is in :mod:`jaxclip.train.checks`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxclip.config_file import flatten
from jaxclip.spike_actions import REWIND, as_actions

# Parameters that no gradient and no optimizer ever changes: the statistics of batch norms
# (:class:`jaxclip.models.batch_norm.FrozenBatchNorm`).
STATISTICS = r"(^|/)running_(mean|var)$"

_INFINITY = math.inf
_TOWER = {"width": (1, 65_536), "depth": (1, 1000), "num_heads": (1, 4096), "mlp_dim": (1, 2**20)}

# Smallest and largest value. The largest are far beyond any use, and there lest a slip of the pen
# builds for hours or asks for a terabyte.
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "total_steps": (1, 2**31 - 2),
    "global_batch_size": (1, 2**31 - 1),
    "num_micro_batches": (1, 2**31 - 1),
    "logit_scale_max": (-_INFINITY, _INFINITY),
    "max_consecutive_nonfinite": (1, _INFINITY),
    "log_every_steps": (1, _INFINITY),
    "checkpoint.every_steps": (0, _INFINITY),
    "checkpoint.keep_last": (1, _INFINITY),
    "checkpoint.keep_best": (0, _INFINITY),
    "evaluate.every_steps": (0, _INFINITY),
    "evaluate.batch_size": (1, 2**20),
    "profile.start_step": (1, _INFINITY),
    "profile.num_steps": (0, _INFINITY),
    "data.image_size": (1, 8192),
    "data.shuffle_window": (1, 2**40),
    "data.shuffle_chunk": (1, 2**40),
    "data.cache_decoded_mb": (0, _INFINITY),
    "data.max_unusable": (0.0, 1.0),
    "data.num_parallel_calls": (0, 4096),
    "data.prefetch": (0, 4096),
    "data.workers": (0, 1024),
    "data.stall_seconds": (0.0, _INFINITY),
    "tokenizer.context_length": (1, 2**20),
    "model.embed_dim": (1, 65_536),
    "model.logit_scale_init": (-100.0, 100.0),
    "model.logit_bias_init": (-1e4, 1e4),
    "model.image.patch_size": (1, 8192),
    "model.image.stem_depth": (0, 1000),
    "model.image.stem_width": (2, 65_536),
    "model.image.mlp_ratio": (1, 1024),
    "model.image.norm_eps": (0.0, 1.0),
    "model.image.tract_lambda": (0.0, _INFINITY),
    "model.text.norm_eps": (0.0, 1.0),
    **{f"model.{tower}.attention_soft_cap": (0.0, _INFINITY) for tower in ("image", "text")},
    **{f"model.{tower}.layer_scale": (0.0, _INFINITY) for tower in ("image", "text")},
    **{f"model.{tower}.mup_base_width": (0, 65_536) for tower in ("image", "text")},
    **{f"model.{tower}.mup_base_heads": (0, 4096) for tower in ("image", "text")},
    **{f"model.{tower}.head_dim": (0, 4096) for tower in ("image", "text")},
    "model.text.vocab_size": (1, 2**26),
    **{f"model.{tower}.{key}": span for tower in ("image", "text") for key, span in _TOWER.items()},
    "low_rank.rank": (0, 65_536),
    "low_rank.scaling": (0.0, _INFINITY),
    "optim.learning_rate": (0.0, _INFINITY),
    "optim.weight_decay": (0.0, _INFINITY),
    "teacher.size": (0, 2**20),
    "watch.threshold": (1.0, _INFINITY),
    "watch.window": (2, 100_000),
    "watch.min_history": (2, 100_000),
    "watch.steps_kept": (1, 10_000),
    "watch.probe_every_steps": (0, _INFINITY),
    "watch.probe_examples": (2, 4096),
    "watch.max_events": (0, 10_000),
    "on_spike.rate_factor": (0.0, 1.0),
    "on_spike.rate_steps": (1, 2**30),
    "on_spike.rewind_steps": (1, 2**30),
    "on_spike.rewind_batches": (0, 2**30),
    "on_spike.rewind_beyond": (0, 2**30),
    "on_spike.rewind_limit": (1, _INFINITY),
    "distributed.heartbeat_timeout_seconds": (1, 2**31 - 1),
    "distributed.initialization_timeout_seconds": (1, 2**31 - 1),
    "distributed.shutdown_timeout_seconds": (1, 2**31 - 1),
}

# Keys without a value as their default, and what they may be else.
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "model.logit_bias_init": (float, int),
    "attention_implementation": (str,),
    "model.image.layer_scale": (float, int),
    "model.text.layer_scale": (float, int),
}

# What lists hold, and how much of it (None: any number). A string may stand for a list of strings.
_ELEMENTS: dict[str, tuple[type, int | None]] = {
    "data.image_mean": (float, 3),
    "data.image_std": (float, 3),
    "data.languages": (str, None),
    "data.patch_counts": (int, None),
    "evaluate.zero_shot": (str, None),
    "evaluate.retrieval": (str, None),
    "evaluate.templates": (str, None),
    "init_from_exclude": (str, None),
    "low_rank.patterns": (str, None),
    "model.image.stem_widths": (int, None),
    "model.image.depths": (int, None),
    "model.image.widths": (int, None),
}

_CHOICES = {
    "checkpoint.best_mode": ("max", "min"),
    "precision.compute_dtype": ("float32", "bfloat16", "float16"),
    "precision.residual_dtype": (None, "float32", "bfloat16", "float16"),
    "attention_implementation": (None, "xla", "cudnn", "fused"),
}


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that can't be, before anything is built or compiled.

    Args:
      config: the complete configuration.

    Raises:
      ValueError: names the key, the value and what it may be.
    """
    flat = dict(flatten(config))
    for key, value in flat.items():
        _check_type(key, value)
        _check_range(key, value)
        if key in _CHOICES and value not in _CHOICES[key]:
            *most, last = map(repr, _CHOICES[key])
            raise ValueError(f"{key}={value!r}; use {', '.join(most)} or {last}")
    if flat["global_batch_size"] % flat["num_micro_batches"]:
        raise ValueError(
            f"num_micro_batches={flat['num_micro_batches']} does not divide "
            f"global_batch_size={flat['global_batch_size']}"
        )
    if not 0.0 <= flat["ema_decay"] < 1.0:
        raise ValueError(f"ema_decay={flat['ema_decay']} must be in [0, 1)")
    if not all(std > 0 for std in flat["data.image_std"]):
        raise ValueError(
            f"data.image_std={flat['data.image_std']}: pixels are divided by it, so each must be "
            "above 0"
        )
    _check_patches(flat)
    _check_decay(flat["teacher.decay"])
    _check_patterns("init_from_exclude", flat["init_from_exclude"])
    _check_patterns("low_rank.patterns", flat["low_rank.patterns"])
    _check_named("writers", flat["writers"])
    _check_spikes(config)
    _check_ranges("skip_batches", flat["skip_batches"])


def is_frozen(config: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter, ``image/stem/kernel`` or the like, is never updated.

    It is so by ``optim.freeze``, or by the first of ``optim.groups`` that it belongs to; batch
    norms' statistics always are.
    """
    from jaxclip.optim.groups import group_of, read_groups

    if any(re.search(pattern, name) for pattern in [STATISTICS, *_freeze(config["optim"])]):
        return True
    group = group_of(read_groups("optim.groups", config["optim"].get("groups")), name)
    return group is not None and group.frozen


def frozen_statistics(optim: Mapping[str, Any], has_statistics: bool) -> dict[str, Any]:
    """The section ``optim`` with the statistics of batch norms frozen, if there are any."""
    if not has_statistics:
        return dict(optim)
    return {**optim, "freeze": [*_freeze(optim), STATISTICS]}


def _freeze(optim: Mapping[str, Any]) -> list[str]:
    patterns = optim.get("freeze") or ()
    return [patterns] if isinstance(patterns, str) else list(patterns)


def logit_scale_limit(config: Mapping[str, Any]) -> float:
    """The bound of ``logit_scale`` after each update: none for a frozen one, which stays put."""
    return math.inf if is_frozen(config, "logit_scale") else config["logit_scale_max"]


def _check_type(key: str, value: Any) -> None:
    if key in _OPTIONAL:
        kinds = _OPTIONAL[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(f"config key {key!r} wants {kinds[0].__name__} or None, got {value!r}")
        return
    if key not in _ELEMENTS:
        return
    kind, count = _ELEMENTS[key]
    if isinstance(value, str) and kind is str:
        return
    fits = isinstance(value, list) and all(_is_a(kind, element) for element in value)
    if not fits or count not in (None, len(value)):
        many = kind.__name__ if count is None else f"{count} {kind.__name__}"
        raise ValueError(f"config key {key!r} wants a list of {many}, got {value!r}")


def _is_a(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and value > 0
    return isinstance(value, kind)


def _check_range(key: str, value: Any) -> None:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{key}={value} is not a number")
    span = _RANGES.get(key)
    if span is None or value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"config key {key!r} wants a number, got {value!r}")
    least, most = span
    if value < least:
        raise ValueError(f"{key}={value} must be at least {least}")
    if value > most or (value == _INFINITY and key != "logit_scale_max"):
        limit = "finite" if most == _INFINITY else f"at most {most}"
        raise ValueError(f"{key}={value} must be {limit}")


def _check_decay(value: Any) -> None:
    """A number, or ``[[step, decay], ...]``."""
    points = value if isinstance(value, list) else [[0, value]]
    pairs = all(isinstance(p, list) and len(p) == 2 for p in points)
    if not points or not pairs or not all(_is_a(float, x) for p in points for x in p):
        raise ValueError(f"teacher.decay={value!r} is neither a number nor [[step, decay], ...]")
    if not all(0 <= decay <= 1 for _, decay in points):
        raise ValueError(f"teacher.decay={value!r} must be in [0, 1]")


def _check_patterns(key: str, patterns: list[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{key}: {pattern!r} is no regular expression: {error}") from error


def _check_named(key: str, given: Any) -> None:
    """Names, or dicts with a name; whether there is such a thing its owner knows."""
    for entry in [given] if isinstance(given, str) else given:
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if not isinstance(name, str) or not name:
            raise ValueError(f"{key} has {entry!r}; give names, or dicts with a 'name'")


def _check_spikes(config: Mapping[str, Any]) -> None:
    watch, policy = config["watch"], config["on_spike"]
    if watch["min_history"] > watch["window"]:
        raise ValueError(
            f"watch.min_history={watch['min_history']} is more than watch.window="
            f"{watch['window']}; use at most that"
        )
    if REWIND in as_actions(policy["actions"]) and not config["checkpoint"]["every_steps"]:
        raise ValueError(
            "on_spike.actions has 'rewind', which goes back to a checkpoint, but "
            "checkpoint.every_steps=0; use 100, say"
        )


def _check_ranges(key: str, ranges: list[Any]) -> None:
    """``[[first, last], ...]`` of whole numbers, ascending and apart."""
    end = -1
    for entry in ranges:
        pair: list[Any] = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        if not all(type(number) is int for number in pair) or not end < pair[0] <= pair[1]:
            raise ValueError(
                f"{key}={ranges!r}: give [[first, last], ...], whole numbers of batches counted "
                "from 0, ascending and apart"
            )
        end = pair[1]


def _check_patches(flat: Mapping[str, Any]) -> None:
    image_size, patch_size = flat["data.image_size"], flat.get("model.image.patch_size")
    if patch_size and image_size % patch_size:
        fits = [p for p in (4, 8, 14, 16, 32) if image_size % p == 0]
        raise ValueError(
            f"model.image.patch_size={patch_size} does not divide data.image_size={image_size}; "
            f"use {', '.join(map(str, fits)) or 'another image size'}"
        )
