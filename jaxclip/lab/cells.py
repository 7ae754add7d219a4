"""What a finished cell leaves: one small file, written whole or not at all."""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from jaxclip import storage
from jaxclip.lab import config as config_lib
from jaxclip.lab.config import Cell, Config

FOLDER = "cells"
_ABOUT = "about"


def path_of(workdir: pathlib.Path, config: Config, cell: Cell) -> pathlib.Path:
    """Where a cell is kept. Its name ends in a digest of its settings, so that a cell of another
    configuration is never taken for it."""
    name = f"{cell.rule}-{cell.rate:g}-{cell.injector}-{cell.precision}-{cell.model}-{cell.seed}"
    return workdir / FOLDER / f"{name}-{config_lib.digest(config, cell)}.npz"


def write(path: pathlib.Path, curves: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write a cell.

    Args:
      path: its file; the folder is made.
      curves: arrays by name.
      about: what else is known, JSON.

    Raises:
      OSError: it can't be written; the message says why.
    """
    content: dict[str, Any] = {
        **curves,
        _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez_compressed(file, **content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = storage.reason(error, path.parent)
        raise type(error)(f"{path} can't be written: {reason}") from error


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Curves and what else is known of a cell; None where it is missing or damaged."""
    try:
        with np.load(path) as file:
            curves = {name: file[name] for name in file.files}
        about: dict[str, Any] = json.loads(curves.pop(_ABOUT).tobytes())
        return curves, about
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
