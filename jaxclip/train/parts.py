"""A checkpoint of several processes that share no folder: each writes and uploads its part.

Every process saves the shards that it owns into its own staging folder, uploads them and then a
table of them. Process 0 waits for the tables of all and commits the checkpoint at the address by a
manifest that lists every part. The index of all parts (of the format, OCDBT) is made where the
checkpoint is read, in the reader's copy (:func:`join`): it refers to the files of the parts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxclip.errors import RunError
from jaxclip.train import manifest, multihost, staging
from jaxclip.train.mirror import Mirror

logger = logging.getLogger("jaxclip")

_INDEX = "manifest.ocdbt"
_PART = "ocdbt.process_"
# In the table of a part that will not come: why.
_FAILED = "failed"

# How long process 0 waits for the others once their next checkpoint is due.
_PATIENCE = 120.0
_LONGEST_PAUSE = 15.0


class PartError(RuntimeError):
    """Another process could not write its part, and ends the run by that.

    Attributes:
      explained: as of :class:`jaxclip.errors.ProcessesError`.
    """

    explained = True


class Parts:
    """What the processes of a run do to commit a checkpoint at an address.

    Args:
      copy: this process's copy of the address; process 0's is the mirror.

    Attributes:
      hurry: set when somebody waits: what fails now is given up.
    """

    def __init__(self, copy: staging.Copy):
        self._copy = copy
        self.hurry = threading.Event()

    def prepare(self, folder: epath.Path) -> None:
        """Make an empty folder for this process's part of a checkpoint.

        Raises:
          OSError: the address can't be reached, or the folder can't be made.
        """
        self.hurry.clear()
        if isinstance(self._copy, Mirror):
            self._copy.clear(folder.name)
        shutil.rmtree(os.fspath(folder), ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self) -> str:
        """A number for the save of a checkpoint, the same on all processes, which all call it."""
        number = np.random.default_rng().integers(2**31, size=2, dtype=np.int32)
        return "".join(f"{int(each):08x}" for each in multihost.broadcast(number))

    def release(self, folder: epath.Path) -> None:
        """Remove a checkpoint that was read; process 0's is the one that is mirrored, and stays."""
        if not isinstance(self._copy, Mirror):
            shutil.rmtree(os.fspath(folder), ignore_errors=True)

    def commit(self, folder: epath.Path, content: dict[str, Any], number: str) -> None:
        """Upload this process's part; process 0 commits. In the background of each process.

        Only what process 0 has of a checkpoint that came to be stays on this machine.

        Args:
          folder: of the checkpoint, this process's part saved.
          content: of the manifest.
          number: of :meth:`begin`, of this save.

        Raises:
          OSError: the address could not be reached for too long; there is no such checkpoint.
          PartError: another process failed.
        """
        committed = False
        try:
            self._upload(folder, number)
            if isinstance(self._copy, Mirror):
                self._finish(self._copy, folder, content, number)
                committed = True
        finally:
            if not committed:
                shutil.rmtree(os.fspath(folder), ignore_errors=True)

    def fail(self, step: str, number: str, reason: str) -> None:
        """Tell process 0, as far as possible, that this process's part will not come.

        Args:
          step: name of the checkpoint.
          number: of :meth:`begin`, of this save.
          reason: why.
        """
        with contextlib.suppress(OSError, RunError):
            self._copy.put(_mark(step, number), json.dumps({_FAILED: reason}).encode())

    def _upload(self, folder: epath.Path, number: str) -> None:
        base = f"{staging.CHECKPOINTS}/{folder.name}"
        forget_index(folder / "state")
        table = {name: row for name, row in manifest.table_of(folder).items() if _is_mine(name)}
        blocks = {name: row for name, row in manifest.blocks_of(folder).items() if name in table}
        left = dict(table)

        def upload(name: str) -> None:
            self._copy.put(f"{base}/{name}", (folder / name).read_bytes())
            left.pop(name)

        def upload_all() -> None:
            staging.each(upload, list(left))
            mark = _mark(folder.name, number)
            self._copy.put(mark, json.dumps({"files": table, "blocks": blocks}).encode())

        self._patiently(upload_all)

    def _finish(
        self, mirror: Mirror, folder: epath.Path, content: dict[str, Any], number: str
    ) -> None:
        content = {**content, "format": manifest.FORMAT, "block_bytes": manifest.BLOCK}
        whole = {**content, **self._tables(folder.name, number)}
        text = manifest.text_of(whole).encode()
        self._patiently(lambda: mirror.finish(folder.name, text))
        manifest.put(folder, whole)

    def _tables(self, step: str, number: str) -> dict[str, Any]:
        """The ``files`` and ``blocks`` of all parts, once all are there."""
        tables: dict[str, dict[str, Any]] = {"files": {}, "blocks": {}}
        deadline = float("inf")
        for process in range(jax.process_count()):
            name, pause = _mark(step, number, process), 0.05
            read = functools.partial(self._copy.bucket.read, name)
            while (content := self._patiently(read)) is None:
                if self.hurry.is_set():
                    deadline = min(deadline, time.monotonic() + _PATIENCE)
                if time.monotonic() > deadline:
                    place = f"{staging.CHECKPOINTS}/{step}"
                    raise OSError(f"the part of process {process} did not come to {place}")
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
            found = json.loads(content)
            if _FAILED in found:
                raise PartError(f"process {process} could not write its part: {found[_FAILED]}")
            for kind, table in found.items():
                tables[kind] |= table
        return tables

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask again, with pauses, until it succeeds or somebody waits."""
        pause, told = 1.0, False
        while True:
            try:
                return ask()
            except OSError as error:
                if self.hurry.wait(pause):
                    raise
                if not told:
                    logger.warning("%s; training goes on, and this is tried again", error)
                told = True
                pause = min(2 * pause, _LONGEST_PAUSE)


def _mark(step: str, number: str, process: int | None = None) -> str:
    """The file that says that a process's part is there; by default this process's."""
    process = jax.process_index() if process is None else process
    return f"{staging.CHECKPOINTS}/{step}/part_{number}_{process}.json"


def options() -> ocp.options.MultiprocessingOptions:
    """Of orbax, by which this process writes as if it was alone, and waits for no other one."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=None,
        active_processes={process},
        barrier_sync_key_prefix=f"process_{process}",
    )


def _is_mine(name: str) -> bool:
    """Whether a file of a checkpoint is of this process's part: process 0's has what is common."""
    folder, _, rest = name.partition("/")
    if folder != "state":
        return False
    process = str(jax.process_index())
    for of_processes in (_PART, "array_metadatas/process_"):
        if rest.startswith(of_processes):
            return rest.removeprefix(of_processes).partition("/")[0] == process
    return process == "0"


def forget_index(state: epath.Path) -> None:
    """Remove the index that orbax made of this process's part alone."""
    (state / _INDEX).unlink(missing_ok=True)
    shutil.rmtree(os.fspath(state / "d"), ignore_errors=True)


def join(state: epath.Path, files: Mapping[str, Any]) -> None:
    """Make the index of the parts of a checkpoint in a local folder, unless it has one.

    Args:
      state: folder of the arrays.
      files: of the checkpoint, as its manifest lists them. An index among them is not made anew.
    """
    if f"{state.name}/{_INDEX}" in files or (state / _INDEX).exists() or not state.exists():
        return
    parts = sorted(path.name for path in state.iterdir() if path.name.startswith(_PART))
    if not parts:
        return
    import tensorstore

    context = tensorstore.Context({})  # without one in common nothing can be copied by reference

    def opened(folder: epath.Path) -> Any:
        base = {"driver": "file", "path": f"{os.fspath(folder)}/"}
        spec = {"driver": "ocdbt", "base": base}
        return tensorstore.KvStore.open(spec, context=context).result()

    whole, at_once = opened(state), tensorstore.Transaction(atomic=True)
    for part in parts:
        opened(state / part).experimental_copy_range_to(whole.with_transaction(at_once)).result()
    at_once.commit_async().result()
