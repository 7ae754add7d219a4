"""Reductions by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxclip.models.reductions._base import Reduction
from jaxclip.registry import Registry

REDUCTIONS = Registry("token reduction", "jaxclip.models.reductions")


def from_config(config: Mapping[str, Any] | None) -> Reduction | None:
    """The reduction of a configuration.

    Args:
      config: ``{"name": "tome", "r": 8}``, a name and its options; empty for none.

    Raises:
      ValueError: an unknown name or option, naming the nearest, or a value that can't be.
    """
    if not config:
        return None
    made: Reduction = REDUCTIONS.build(dict(config))
    return made
