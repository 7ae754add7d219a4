"""Records, readers, the tf.data pipeline, tokenizers, importers and the built-in data set.

Importing this package imports neither tensorflow nor anything else that is heavy: the modules are
imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_SUBMODULES = frozenset(
    {
        "emoji",
        "image_ops",
        "importer",
        "pipeline",
        "schema",
        "sources",
        "text_ops",
        "tokenizers",
        "webdataset",
    }
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
