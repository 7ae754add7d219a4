"""jaxclip: contrastive language-image pretraining in JAX that does not blow up.

``import jaxclip`` is light: submodules (``jaxclip.optim``, ``jaxclip.models``, …) are imported on
first use. ``jaxclip.load`` opens a model, see :func:`jaxclip.inference.load`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = frozenset(
    {
        "bench",
        "cli",
        "config",
        "data",
        "evaluate",
        "inference",
        "losses",
        "models",
        "optim",
        "parallel",
        "plan",
        "train",
        "weights",
    }
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "load":
        return importlib.import_module(f"{__name__}.inference").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES, "load"})
