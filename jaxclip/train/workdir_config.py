"""The configuration that a workdir holds: is it this experiment's, and what changed on the way?"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.config import Config
from jaxclip.train import manifest
from jaxclip.train.workdir import CHECKPOINTS, CONFIG_FILE, HISTORY_FILE, WorkdirError, lent

logger = logging.getLogger("jaxclip")


def check_config(
    config: Config, path: pathlib.Path, *, extend: bool = False, name: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Refuse a configuration that the run in the workdir does not have.

    Args:
      config: resolved configuration.
      path: the workdir.
      extend: what :data:`jaxclip.config.EXTENDABLE_KEYS` names may differ.
      name: of the workdir, where the folder is a copy of it.

    Returns:
      ``{key: (before, now)}`` of what differs (with ``extend``) and changes the results.

    Raises:
      WorkdirError: names every key that differs with both values, and the ways on.
    """
    name = name or os.fspath(path)
    old = _config_in(path, name)
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
        f"workdir {name} holds a run of another configuration:\n  "
        + "\n  ".join(config_lib.differences(old, config))
        + f"\n{ways}; a new run in another --workdir can start from its weights: "
        f"--config.init_from={name}"
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


def read_config(workdir: str | os.PathLike[str]) -> Config:
    """The configuration of the run in a workdir.

    Raises:
      WorkdirError: there is none, or it can't be read.
    """
    config = find_config(workdir)
    if config is None:
        place = storage.absolute(workdir)
        raise WorkdirError(
            f"{place.rstrip('/')}/{CONFIG_FILE} does not exist: {workdir} is not the workdir of a "
            "run" + ("" if storage.is_local(place) else ", or there is no such bucket")
        )
    return config


def complete(
    config: Config, workdir: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> Config:
    """The configuration of a workdir, resolved.

    Args:
      config: as :func:`read_config` gives it.
      workdir: where it is from.
      overrides: of a command line, as of :func:`jaxclip.config.resolve`.

    Raises:
      WorkdirError: the workdir's own configuration is none for this version.
      ValueError: an override is wrong.
    """
    try:
        # Overrides may mend what is wrong with it.
        return config_lib.resolve(config, overrides)
    except ValueError:
        try:
            config_lib.resolve(config)
        except ValueError as error:
            place = storage.absolute(workdir).rstrip("/")
            raise WorkdirError(
                f"{place}/{CONFIG_FILE}: {error}; was it edited, or written by a newer jaxclip?"
            ) from error
        raise


def find_config(workdir: str | os.PathLike[str]) -> Config | None:
    """The configuration in ``config.json`` or, where that is lost, of the newest checkpoint.

    Args:
      workdir: folder of a run, or an address.

    Returns:
      None where there is no run yet.

    Raises:
      WorkdirError: ``config.json`` can't be read, and no checkpoint has a copy.
      OSError: an address can't be read.
    """
    with lent(workdir, lambda name: name == CONFIG_FILE) as (path, _):
        return _config_in(path, storage.absolute(workdir))


def _config_in(path: pathlib.Path, name: str) -> Config | None:
    """:func:`find_config` in a folder, which may be the copy of a workdir of that name."""
    file, known = path / CONFIG_FILE, f"{name.rstrip('/')}/{CONFIG_FILE}"
    problem = ""
    if file.is_file():
        try:
            found = config_lib.load(file)
        except ValueError as error:
            problem = f"{known} is not valid JSON ({error})"
        else:
            if "model" not in found and "total_steps" not in found:
                keys = ", ".join(map(repr, list(found)[:3])) or "nothing"
                raise WorkdirError(
                    f"{known} is of another program (it has {keys}): {name} is not the workdir of "
                    "a run; published weights become one by `jaxclip weights import`"
                )
            return found
    for folder in sorted((path / CHECKPOINTS).glob("step_*"), reverse=True):
        with contextlib.suppress(manifest.ManifestError):
            saved = manifest.read(epath.Path(folder))["extra"].get("config")
            if saved:
                logger.warning(
                    "%s; using the copy in checkpoint %s",
                    problem or f"{known} is missing",
                    folder.name,
                )
                return saved
    if problem:
        raise WorkdirError(f"{problem}; bring back a copy of it, or use another --workdir")
    return None
