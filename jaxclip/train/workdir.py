"""The folder of a run: may it be written, and is it this experiment's?"""

from __future__ import annotations

import os
import pathlib
import uuid

import jax

from jaxclip import config as config_lib
from jaxclip.config import Config

CONFIG_FILE = "config.json"


class WorkdirError(ValueError):
    """The workdir can't be written, or belongs to another experiment."""


def prepare(config: Config, workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Create the workdir and its ``config.json``, or check that it is this experiment's.

    Args:
      config: resolved configuration.
      workdir: folder of the run.

    Returns:
      The absolute path.

    Raises:
      WorkdirError: not writable, or ``config.json`` differs in a key that changes the results
        (every such key is named with both values).
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    check_writable(path)
    file = path / CONFIG_FILE
    if file.exists():
        lines = config_lib.differences(read_config(path), config)
        if lines:
            raise WorkdirError(
                f"workdir {path} holds a run of another configuration:\n  "
                + "\n  ".join(lines)
                + "\nuse another --workdir, or give the configuration it was started with"
            )
    if jax.process_index() == 0:
        temporary = file.with_suffix(".tmp")
        config_lib.save(config, temporary)
        temporary.replace(file)
    return path


def check_writable(path: pathlib.Path) -> None:
    """Create ``path`` and prove by a file that it can be written.

    Raises:
      WorkdirError: it can't.
    """
    probe = path / f".write_probe_{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise WorkdirError(
            f"workdir {path} can't be written ({error.strerror or error}); choose another --workdir"
        ) from error


def read_config(workdir: str | os.PathLike[str]) -> Config:
    """The configuration a workdir was started with.

    Raises:
      WorkdirError: there is none, or it is not JSON.
    """
    file = pathlib.Path(workdir).expanduser() / CONFIG_FILE
    if not file.is_file():
        raise WorkdirError(f"{file} does not exist: {workdir} is not the workdir of a run")
    try:
        return config_lib.load(file)
    except ValueError as error:
        raise WorkdirError(
            f"{file} is not valid JSON ({error}); delete it to start over"
        ) from error
