"""Where a run ran: versions, devices, cores; written to ``environment.json`` at each start."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

import jax

from jaxclip import __version__, storage

FILE_NAME = "environment.json"
_LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "orbax-checkpoint",
    "tensorflow-cpu",
    "tensorflow",
    "tensorflow-datasets",
    "tokenizers",
)


def describe() -> dict[str, Any]:
    """Versions and hardware, JSON-serialisable; no names of hosts, users or paths."""
    devices = jax.devices()
    return {
        "jaxclip": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": _cpu_count(),
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "processes": jax.process_count(),
        "libraries": ", ".join(_versions()),
    }


def write(workdir: pathlib.Path, **more: Any) -> None:
    """Write :func:`describe` and ``more`` into a workdir (process 0 alone does)."""
    if jax.process_index() == 0:
        storage.write_json(workdir / FILE_NAME, {**describe(), **more})


def _cpu_count() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> list[str]:
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
