"""One run in a workdir at a time: a lock that needs nothing but files.

``lock.json`` says who holds the workdir: host, machine (its boot), process and when that started.
It is made by an exclusive create, which file systems without ``flock`` have, too. A holder on this
machine is dead if its process is; of one elsewhere nothing is known but the file's counter, which a
living one raises every few seconds. It is watched for change, so no two clocks are compared.

Where the file lies is a :class:`Place`: a folder (:class:`FolderPlace`), or an address
(:class:`jaxclip.data.bucket.LockFile`), whose store writes on a condition.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jaxclip.errors import RunError

logger = logging.getLogger("jaxclip")

FILE_NAME = "lock.json"
BEAT_SECONDS = 10.0
# A holder elsewhere whose counter stands still for so long is dead. Network file systems show a
# change after some seconds, and a busy machine beats late.
WATCH_SECONDS = 60.0

# How long a process may need to remove a dead one's lock.
_GUARD_SECONDS = 5.0

# All contents have the same size, so that a beat needs no new space on a full disk.
_SIZE = 512


class LockedError(ValueError):
    """Another run holds the workdir; the message names its host and process, and the ways out."""


class LostLockError(RunError):
    """Another run took the workdir over while this one was using it."""


class Holder(NamedTuple):
    """Who holds a lock.

    Attributes:
      host: name of the host.
      machine: this boot of the machine, and the namespace that process numbers are counted in;
        empty where the system does not tell.
      pid: process number.
      started: when the process started, as the system tells it: another process that was given
        the same number later started at another time.
      token: random, of this lock.
      beat: counter, raised while the holder lives.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> Holder:
        """A new lock's holder: this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _started(pid), secrets.token_hex(8))

    def is_here(self) -> bool:
        """Whether its process number means something on this machine."""
        return self.host == socket.gethostname() and self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether the process runs; only to be asked of one that :meth:`is_here`."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # it is somebody else's
        return self.started == _started(self.pid)


class Place(Protocol):
    """Where the file of a lock is kept. Every method raises OSError if it can't be reached.

    Attributes:
      workdir: what the lock is for, for messages.
    """

    workdir: str

    def create(self, content: bytes) -> bool:
        """Make the file; False if there is one. One of many at once succeeds."""
        ...

    def read(self) -> bytes | None:
        """Its content; None if there is none."""
        ...

    def write(self, before: bytes, after: bytes) -> bool:
        """Replace the content by one of the same size; False if it is not ``before`` any more."""
        ...

    def remove(self, before: bytes) -> bool:
        """Remove the file if it has this content; False if it has not.

        Exact, as ``create``, if the place can do that: a holder whose file was removed by mistake
        learns of it at its next beat.
        """
        ...


class Lock:
    """The lock of one workdir, held from construction to :meth:`release`."""

    def __init__(
        self,
        workdir: str | os.PathLike[str] | Place,
        *,
        force: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ):
        """Take the lock, from a dead holder if need be.

        Args:
          workdir: an existing folder, or another place.
          force: take it from a holder that may be alive.
          stopped: asked while waiting; True gives up.

        Raises:
          LockedError: another run holds it.
          OSError: the place can't be written.
        """
        self.place: Place = (
            FolderPlace(workdir) if isinstance(workdir, (str, os.PathLike)) else workdir
        )
        self.holder = Holder.this_process()
        self._content = _encode(self.holder)
        self._lost = False
        self._released = threading.Event()
        while not self.place.create(self._content):
            content = self.place.read()
            if content is None:
                continue
            if content == self._content:
                break  # it was made, and a store's answer that said so was lost
            if not force:
                self._refuse_if_alive(_decode(content), stopped)
            self.place.remove(content)
        self._thread = threading.Thread(target=self._keep_beating, name="workdir_lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that it is still ours, as far as the last beat knows.

        Raises:
          LostLockError: it was taken over.
        """
        if self._lost:
            other = None
            with contextlib.suppress(OSError):
                content = self.place.read()
                other = _decode(content) if content else None
            raise LostLockError(_lost(self.place.workdir, other))

    def look(self) -> None:
        """As :meth:`check`, but look at the file now.

        Raises:
          LostLockError: it was taken over.
          OSError: the place can't be reached.
        """
        if _is_another(self.place.read(), self.holder.token):
            self._lost = True
        self.check()

    def release(self) -> None:
        """Let go; may be called again."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            content = self.place.read()
            held = _decode(content) if content else None
            if content and held is not None and held.token == self.holder.token:
                self.place.remove(content)

    def _refuse_if_alive(self, other: Holder | None, stopped: Callable[[], bool]) -> None:
        if other is not None and other.is_here():
            if other.is_alive():
                raise LockedError(self._in_use(other))
            return
        who = f"process {other.pid} on host {other.host}" if other else "an unreadable lock file"
        logger.info(
            "workdir %s is held by %s; looking for up to %.0f s whether it is alive",
            self.place.workdir,
            who,
            WATCH_SECONDS,
        )
        deadline = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < deadline and (content := self.place.read()) is not None:
            now = _decode(content)
            if now is not None and now != other:
                raise LockedError(self._in_use(now))
            if stopped():
                raise LockedError(f"stopped while waiting for workdir {self.place.workdir}")
            time.sleep(min(1.0, WATCH_SECONDS / 10))

    def _in_use(self, other: Holder) -> str:
        way = f"stop it (kill {other.pid})"
        if not other.is_here():
            way += ", or if it is gone take the workdir over with --break_lock,"
        return (
            f"workdir {self.place.workdir} is in use by process {other.pid} on host {other.host}; "
            f"wait for it, {way} or use another --workdir"
        )

    def _keep_beating(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                content = self.place.read()
                if content is None or _is_another(content, self.holder.token):
                    self._lost = True
                    return
                self.holder = self.holder._replace(beat=self.holder.beat + 1)
                self.place.write(content, _encode(self.holder))
            except OSError as error:
                logger.debug("no beat in %s: %s", self.place.workdir, error)


class Shared:
    """A lock that another process of the same run holds.

    Args:
      place: of the lock.
      token: of its holder.
    """

    def __init__(self, place: Place, token: str):
        self._place, self._token = place, token

    def look(self) -> None:
        """Make sure that the run still holds it.

        Raises:
          LostLockError: it was taken over.
          OSError: the place can't be reached.
        """
        content = self._place.read()
        if _is_another(content, self._token):
            raise LostLockError(_lost(self._place.workdir, _decode(content or b"")))


class FolderPlace:
    """The file of a lock in a folder of a file system."""

    def __init__(self, folder: str | os.PathLike[str]):
        self.workdir = os.fspath(folder)
        self._path = pathlib.Path(folder) / FILE_NAME

    def create(self, content: bytes) -> bool:
        """Make the file; False if there is one."""
        return _create(self._path, content)

    def read(self) -> bytes | None:
        """Its content; None if there is none."""
        for _ in range(3):  # a file that is being written may read as half of one
            try:
                content = self._path.read_bytes()
            except FileNotFoundError:
                return None
            except OSError:
                content = b""
            if _decode(content) is not None:
                return content
            time.sleep(0.05)
        return content

    def write(self, before: bytes, after: bytes) -> bool:
        """Overwrite it in place."""
        with self._path.open("r+b") as file:
            file.write(after)
        return True

    def remove(self, before: bytes) -> bool:
        """Remove it if it has this content.

        Only one process at a time looks and removes: between another's look and its removal the
        lock could become a living one.
        """
        guard = self._path.with_name(FILE_NAME + ".taking")
        deadline = time.monotonic() + _GUARD_SECONDS
        while not _create(guard, b"x" * _SIZE):
            if time.monotonic() > deadline:  # whoever made it was killed within these few lines
                guard.unlink(missing_ok=True)
            time.sleep(0.01)
        try:
            if self.read() != before:
                return False
            self._path.unlink(missing_ok=True)
            return True
        finally:
            guard.unlink(missing_ok=True)


def holder_of(place: Place) -> Holder | None:
    """Who holds a lock; None if nobody does, or if its file can't be read."""
    content = place.read()
    return _decode(content) if content else None


def _is_another(content: bytes | None, token: str) -> bool:
    """Whether a lock is not that of ``token`` any more; one that can't be read may be."""
    other = _decode(content or b"")
    return content is None or (other is not None and other.token != token)


def _lost(workdir: str, other: Holder | None) -> str:
    who = f"process {other.pid} on host {other.host}" if other else "somebody"
    return (
        f"workdir {workdir} was taken over by {who} (--break_lock), or its {FILE_NAME} was "
        "removed; this run stops, so that the two do not mix"
    )


def _encode(holder: Holder) -> bytes:
    return json.dumps(holder._asdict()).encode().ljust(_SIZE - 1) + b"\n"


def _decode(content: bytes) -> Holder | None:
    """Who holds the lock; None if that can't be read."""
    try:
        found: dict[str, Any] = json.loads(content)
        return Holder(**found)
    except (ValueError, TypeError):
        return None


def _create(path: pathlib.Path, content: bytes) -> bool:
    """Make the file; False if there is one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return True


def _machine() -> str:
    """This boot and process namespace; empty where the system does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the system's own words; empty if there is none (or a zombie)."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    try:
        # "pid (name) state … starttime": the name may hold blanks and brackets.
        fields = stat.read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if pathlib.Path("/proc/self/stat").exists():
        return ""
    command = ["ps", "-o", "lstart=", "-p", str(pid)]  # no /proc: macOS
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
