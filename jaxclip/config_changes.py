"""What makes two configurations two experiments, and what a run may change when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxclip.config_file import flatten
from jaxclip.config_paths import absolute_paths

Config = dict[str, Any]

# Keys that say how a run is carried out, not what it computes: they may differ on resume.
RUNTIME_KEYS = (
    "mesh",
    "sharding",
    "offload_optimizer_state",
    "checkpoint",
    "evaluate",
    "log_every_steps",
    "writers",
    "distributed",
    "compilation_cache_dir",
    "profile",
    "data.prefetch",
    "data.cache_decoded_mb",
    "data.max_unusable",
    "data.num_parallel_calls",
    "data.workers",
    "data.stall_seconds",
)

# Keys that `jaxclip train --extend` may change for a run that has begun: its state still fits, and
# the data of the steps so far stay what they were.
EXTENDABLE_KEYS = (
    "total_steps",
    "optim",
    "ema_decay",
    "logit_scale_max",
    "max_consecutive_nonfinite",
    "num_micro_batches",
    "remat",
    "attention_implementation",
    "watch",
    "on_spike",
    "skip_batches",
    "data.name",  # the same records, moved
)


def differences(old: Config, new: Config) -> list[str]:
    """Keys whose difference makes it another experiment, as ``"key: old -> new"`` lines."""
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in changes(old, new).items()]


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """``{key: (before, now)}`` of the keys whose difference makes it another experiment.

    A key that one of them lacks has the value ``"(unset)"`` there.
    """
    # A workdir of an earlier version may hold a relative path.
    flat_old, flat_new = dict(flatten(absolute_paths(old))), dict(flatten(absolute_paths(new)))
    found = {}
    for key in sorted(flat_old.keys() | flat_new.keys()):
        if _is_within(key, RUNTIME_KEYS):
            continue
        before, after = flat_old.get(key, "(unset)"), flat_new.get(key, "(unset)")
        if before != after:
            found[key] = (before, after)
    return found


def is_extendable(key: str) -> bool:
    """Whether ``jaxclip train --extend`` may change a key."""
    return _is_within(key, EXTENDABLE_KEYS)


def _is_within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)
