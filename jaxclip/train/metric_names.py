"""Which metric plays which part: the step's and the clippers' names, as displays need them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_SHARE = re.compile(r"(top\d+|(.*_)?r\d+|accuracy.*|.*_accuracy)")
_RECALL = re.compile(r"(image_to_text|text_to_image)_r(\d+)")


def of_clip(config: Mapping[str, Any]) -> str:
    """What clips in a configuration, for people: ``zclip``, ``adagc + elementwise``, ``none``."""
    sections = config["optim"].get("clip") or "none"
    if not isinstance(sections, list):
        sections = [sections]
    return " + ".join(s if isinstance(s, str) else s.get("name", "?") for s in sections)


def find(available: Iterable[str], role: str) -> str | None:
    """The metric that plays a role, or None.

    Args:
      available: metric names.
      role: ``"threshold"`` (norm at which the clipper cuts) or ``"clipped"`` (whether it did, or
        the share of tensors it did); else a name that is looked for as it is.

    Returns:
      The shortest matching name: with several clippers in a chain, the outermost.
    """
    if role not in ("threshold", "clipped"):
        return role if role in set(available) else None
    matches = []
    for name in available:
        last = name.rsplit("/", 1)[-1]
        if name.startswith("optim/") and (last == role or last.endswith(f"_{role}")):
            matches.append(name)
    return min(matches, key=lambda name: (name.count("/"), len(name), name), default=None)


def summarize(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over some steps of what a person watches.

    Args:
      records: metrics of each step, in order.

    Returns:
      Those of ``loss``, ``grad_norm``, ``threshold`` and ``clipped`` that were recorded (means of
      the finite values; NaN if none is finite), and the last ``nonfinite_count``.
    """
    available = set().union(*records)
    result: dict[str, float] = {}
    for role in ("loss", "grad_norm", "threshold", "clipped"):
        name = find(available, role)
        if name is not None:
            values = np.array([float(record.get(name, math.nan)) for record in records])
            finite = values[np.isfinite(values)]
            result[role] = float(finite.mean()) if finite.size else math.nan
    if "nonfinite_count" in records[-1]:
        result["nonfinite_count"] = float(records[-1]["nonfinite_count"])
    return result


def short(name: str) -> str:
    """``top1`` -> ``top-1``, ``image_to_text_r5`` -> ``image→text R@5``, else words."""
    if recall := _RECALL.fullmatch(name):
        return recall.group(1).replace("_to_", "→") + f" R@{recall.group(2)}"
    if name.startswith("top") and name[3:].isdigit():
        return f"top-{name[3:]}"
    name = name.replace("image_to_text", "image→text").replace("text_to_image", "text→image")
    return name.replace("_", " ")


def is_share(name: str) -> bool:
    """Whether a metric (by the last part of its name) is a share in 0…1."""
    return _SHARE.fullmatch(name.rsplit("/", 1)[-1]) is not None


def percent(name: str, value: float) -> str:
    """A value as people read it: shares in per cent, counts as integers."""
    if not math.isfinite(value):
        return "n/a"
    if is_share(name):
        return f"{100 * value:.1f}%"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
