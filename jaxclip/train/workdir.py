"""The folder of a run: may it be written, and is it this experiment's?"""

from __future__ import annotations

import os
import pathlib
import socket
import time
import uuid

import jax
import numpy as np

from jaxclip import config as config_lib
from jaxclip.config import Config
from jaxclip.train import agreement

CONFIG_FILE = "config.json"

# How long a network file system may take to show one host what another has written.
_SHARING_SECONDS = 60.0


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
        (every such key is named with both values), or the processes do not see the same folder.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    check_writable(path)
    check_shared(path)
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


def check_shared(path: pathlib.Path) -> None:
    """Prove that all processes see the same folder; called by all of them.

    Raises:
      WorkdirError: this process, or another one, does not see what process 0 wrote.
    """
    if jax.process_count() == 1:
        return
    name = np.random.default_rng().integers(2**31, size=2, dtype=np.int32)
    name = agreement.broadcast(name)
    probe = path / f".shared_probe_{name[0]:08x}{name[1]:08x}"
    if jax.process_index() == 0:
        probe.write_bytes(b"x")
    agreement.all_agree(True)  # it is written now
    seen = _appears(probe)
    everywhere = agreement.all_agree(seen)
    if jax.process_index() == 0:
        probe.unlink()
    if not everywhere:
        who = f"process {jax.process_index()} on {socket.gethostname()}"
        raise WorkdirError(
            f"workdir {path} is not the same folder on all hosts: "
            + (f"another process than {who}" if seen else who)
            + " does not see what process 0 writes there; choose a --workdir on storage that all "
            "of them share"
        )


def _appears(file: pathlib.Path) -> bool:
    deadline = time.monotonic() + _SHARING_SECONDS
    while file.name not in os.listdir(file.parent):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


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
