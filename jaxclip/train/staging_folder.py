"""Which staging folder a run works in: one that no other run uses, the last one if that is free.

Only the lock of the address says whose that is. But a run that was overtaken there (by
``--break_lock``, or because its network was gone for a while) may be alive, on this machine or on
another one with the same home folder, and goes on writing into its folder until it notices. So each
folder has a lock of its own, by the same rules (:mod:`jaxclip.lock`), and a run that finds it taken
works in another folder.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable

from jaxclip import storage
from jaxclip.lock import FolderPlace, Lock, LockedError, holder_of
from jaxclip.train import staging

# More runs at one address are not alive at the same time.
_FOLDERS = 9


class StagingFolder:
    """A staging folder that this process holds, from construction to :meth:`release`.

    Attributes:
      path: the folder.
    """

    def __init__(
        self,
        address: str,
        process: int = 0,
        *,
        last: str = "",
        hasty: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ):
        """Take a folder.

        Args:
          address: of the workdir.
          process: number of this process.
          last: what the address calls the folder that wrote there last; that one is taken if it is
            here and free.
          hasty: do not wait to see whether a process of another machine, which has the folder, is
            alive: take another one.
          stopped: asked while waiting; True gives up.

        Raises:
          LockedError: too many are in use, or it was stopped.
          OSError: the folder can't be made.
        """
        paths = [staging.folder_of(address, process, number + 1) for number in range(_FOLDERS)]
        if last:
            paths.sort(key=lambda path: _id_of(path) != last)
        for path in paths:
            path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = _lock(path.parent, hasty, stopped)
            except LockedError:
                if path is paths[-1] or stopped():
                    raise
                continue
            break
        self.path = path
        self._first = path == staging.folder_of(address, process)
        try:
            storage.write_text(path.parent / storage.STAGED, f"{address}\n")
        except OSError:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let go of it; but for the first one, it is removed if all of it is at the address."""
        state = storage.read_json(self.path / staging.STATE, {})
        if not self._first and (state.get("whole") or not any(self.path.iterdir())):
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
        if not self._first and not self.path.exists():
            shutil.rmtree(self.path.parent, ignore_errors=True)


def _lock(folder: pathlib.Path, hasty: bool, stopped: Callable[[], bool]) -> Lock:
    holder = holder_of(FolderPlace(folder)) if hasty else None
    if holder is not None and not holder.is_here():
        raise LockedError(f"{folder} may be in use by process {holder.pid} on host {holder.host}")
    return Lock(folder, stopped=stopped)


def _id_of(path: pathlib.Path) -> str:
    return storage.read_json(path / staging.STATE, {}).get("id", "")
