"""The folder of a run: may it be written, is it free, and is it this experiment's?"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.config import Config
from jaxclip.lock import Lock
from jaxclip.train import manifest, multihost

logger = logging.getLogger("jaxclip")

CONFIG_FILE = "config.json"
HISTORY_FILE = "config_history.json"
CHECKPOINTS = "checkpoints"

# How long a network file system may take to show one host what another has written.
_SHARING_SECONDS = 60.0


class WorkdirError(ValueError):
    """The workdir can't be written, or belongs to another experiment."""


class Workdir(NamedTuple):
    """A workdir that this run holds.

    Attributes:
      path: the absolute path.
      lock: the lock on it; None in processes other than 0.
    """

    path: pathlib.Path
    lock: Lock | None

    def check(self) -> None:
        """Raise :class:`jaxclip.lock.LostLockError` if another run took it over."""
        if self.lock is not None:
            self.lock.check()


@contextlib.contextmanager
def hold(
    workdir: str | os.PathLike[str],
    *,
    break_lock: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Workdir]:
    """Create the workdir if need be and keep other runs out of it; called by all processes.

    Args:
      workdir: folder of the run.
      break_lock: take it from a run that may be alive.
      stopped: asked while it is not clear yet whether another run is alive; True gives up.

    Raises:
      lock.LockedError: another run uses it.
      WorkdirError: not writable, or the processes do not see the same folder.
      ValueError: it is an address, not a folder.
    """
    storage.check_workdir(workdir)
    path = pathlib.Path(storage.absolute(workdir))
    lock: Lock | None = None
    problem: Exception | None = None
    try:
        check_writable(path)
        if jax.process_index() == 0:
            lock = Lock(path, force=break_lock, stopped=stopped)
    except OSError as error:
        problem = _unwritable(path, error)
    except ValueError as error:
        problem = error
    try:
        # All of them learn of it, for one that is alone in a collective would hang there.
        everywhere = multihost.all_agree(problem is None)
        if problem is not None:
            raise problem
        if not everywhere:
            raise WorkdirError(
                f"another process of this run could not take workdir {path}; its log says why"
            )
        check_shared(path)
        yield Workdir(path, lock)
    finally:
        if lock is not None:
            lock.release()


def check_config(
    config: Config, path: pathlib.Path, *, extend: bool = False
) -> dict[str, tuple[Any, Any]]:
    """Refuse a configuration that the run in the workdir does not have.

    Args:
      config: resolved configuration.
      path: the workdir.
      extend: what :data:`jaxclip.config.EXTENDABLE_KEYS` names may differ.

    Returns:
      ``{key: (before, now)}`` of what differs (with ``extend``) and changes the results.

    Raises:
      WorkdirError: names every key that differs with both values, and the ways on.
    """
    old = find_config(path)
    if old is None:
        return {}
    # A key that the version which wrote it did not have has its default: it does what that did.
    with contextlib.suppress(ValueError):
        old = config_lib.resolve(old)
    changes = config_lib.changes(old, config)
    refused = [key for key in changes if not (extend and config_lib.is_extendable(key))]
    if not refused:
        return changes
    if extend:
        ways = f"--extend does not change {', '.join(refused)}; use another --workdir"
    else:
        ways = "use another --workdir, or give the configuration it was started with"
        if all(config_lib.is_extendable(key) for key in refused):
            ways = "--extend goes on from its newest checkpoint with the new values; or " + ways
    raise WorkdirError(
        f"workdir {path} holds a run of another configuration:\n  "
        + "\n  ".join(config_lib.differences(old, config))
        + f"\n{ways}; a new run in another --workdir can start from its weights: "
        f"--config.init_from={path}"
    )


def claim(
    config: Config, path: pathlib.Path, step: int, changes: Mapping[str, tuple[Any, Any]]
) -> None:
    """Make the workdir this configuration's, once it is proven by a first step; process 0 does.

    Args:
      config: resolved configuration, written to ``config.json``.
      path: the workdir.
      step: the step this run went on from.
      changes: of :func:`check_config`; they go into ``config_history.json``.

    Raises:
      OSError: it can't be written.
    """
    if jax.process_index() != 0:
        return
    if changes:
        history = [*read_history(path), {"step": step, "changes": dict(changes)}]
        storage.write_json(path / HISTORY_FILE, history)
    config_lib.save(config, path / CONFIG_FILE)


def read_history(path: pathlib.Path) -> list[dict[str, Any]]:
    """``[{"step": …, "changes": {key: [before, after]}}, …]`` of each ``--extend``, in order."""
    return storage.read_json(path / HISTORY_FILE, [])


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
        raise _unwritable(path, error) from error


def _unwritable(path: pathlib.Path, error: OSError) -> WorkdirError:
    return WorkdirError(
        f"workdir {path} can't be written ({error.strerror or error}); choose another --workdir"
    )


def check_shared(path: pathlib.Path) -> None:
    """Prove that all processes see the same folder; called by all of them.

    Raises:
      WorkdirError: this process, or another one, does not see what process 0 wrote.
    """
    if jax.process_count() == 1:
        return
    name = np.random.default_rng().integers(2**31, size=2, dtype=np.int32)
    name = multihost.broadcast(name)
    probe = path / f".shared_probe_{name[0]:08x}{name[1]:08x}"
    if jax.process_index() == 0:
        probe.write_bytes(b"x")
    multihost.all_agree(True)  # it is written now
    seen = _appears(probe)
    everywhere = multihost.all_agree(seen)
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
    """The configuration of the run in a workdir.

    Raises:
      WorkdirError: there is none, or it can't be read.
    """
    path = pathlib.Path(storage.absolute(workdir))
    config = find_config(path)
    if config is None:
        raise WorkdirError(
            f"{path / CONFIG_FILE} does not exist: {workdir} is not the workdir of a run"
        )
    return config


def find_config(path: pathlib.Path) -> Config | None:
    """The configuration in ``config.json`` or, where that is lost, of the newest checkpoint.

    Returns:
      None where there is no run yet.

    Raises:
      WorkdirError: ``config.json`` can't be read, and no checkpoint has a copy.
    """
    file = path / CONFIG_FILE
    problem = ""
    if file.is_file():
        try:
            return config_lib.load(file)
        except ValueError as error:
            problem = f"{file} is not valid JSON ({error})"
    for folder in sorted((path / CHECKPOINTS).glob("step_*"), reverse=True):
        with contextlib.suppress(manifest.ManifestError):
            saved = manifest.read(epath.Path(folder))["extra"].get("config")
            if saved:
                logger.warning("%s; using the copy in %s", problem or f"{file} is missing", folder)
                return saved
    if problem:
        raise WorkdirError(f"{problem}; bring back a copy of it, or use another --workdir")
    return None
