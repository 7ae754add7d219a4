"""Which staging folder a run works in: one that no other run uses, the last one if that is free.

Only the lock of the address says whose that is. But a run that was overtaken there (by
``--break_lock``, or because its network was gone for a while) may be alive, on this machine or on
another one with the same home folder, and goes on writing into its folder until it notices. So each
folder has a lock of its own, by the same rules (:mod:`jaxclip.lock`), and a run that finds it taken
works in another folder.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Callable

from jaxclip import storage
from jaxclip.lock import FolderPlace, Lock, LockedError, LostLockError, holder_of
from jaxclip.train import staging

# More runs at one address are not alive at the same time.
_FOLDERS = 9
# How often a folder that is removed just now, by a run that ends, is made again.
_ATTEMPTS = 5


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
            try:
                self._lock = _take(path, hasty, stopped)
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
        done = not self._first and (state.get("whole") or not any(self.path.iterdir()))
        if done:
            try:
                self._lock.look()
            except (LostLockError, OSError):
                done = False  # it may be another run's
            else:
                shutil.rmtree(self.path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    (self.path.parent / storage.STAGED).unlink()
        self._lock.release()
        if done:
            # Another run may have it from now on: what is not empty stays. So does what was kept.
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


def _take(path: pathlib.Path, hasty: bool, stopped: Callable[[], bool]) -> Lock:
    """Make a folder and take its lock, while a run that ends may be about to remove it."""
    for attempt in range(_ATTEMPTS):
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path.parent, hasty, stopped)
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        break
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        lock.release()
        raise
    return lock


def _lock(folder: pathlib.Path, hasty: bool, stopped: Callable[[], bool]) -> Lock:
    holder = holder_of(FolderPlace(folder)) if hasty else None
    if holder is not None and not holder.is_here():
        raise LockedError(f"{folder} may be in use by process {holder.pid} on host {holder.host}")
    return Lock(folder, stopped=stopped)


def _id_of(path: pathlib.Path) -> str:
    return storage.read_json(path / staging.STATE, {}).get("id", "")
