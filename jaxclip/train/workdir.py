"""The folder of a run: may it be written, and is it free? Whose it is: :mod:`.workdir_config`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxclip import storage
from jaxclip.data import bucket as bucket_lib
from jaxclip.errors import ProcessesError, RunError
from jaxclip.lock import FILE_NAME, Lock, Shared
from jaxclip.train import multihost, staging
from jaxclip.train.mirror import Mirror, last_writer
from jaxclip.train.staging_folder import StagingFolder

logger = logging.getLogger("jaxclip")

CONFIG_FILE = "config.json"
HISTORY_FILE = "config_history.json"
CHECKPOINTS = staging.CHECKPOINTS

# How long a network file system may take to show one host what another has written.
_SHARING_SECONDS = 60.0
# How long an interrupted run tries to remove its lock.
_PARTING_SECONDS = 3.0


class WorkdirError(ValueError):
    """The workdir can't be written, or belongs to another experiment."""


class Workdir(NamedTuple):
    """A workdir that this run holds.

    Attributes:
      path: the absolute path; of one at an address, the staging folder.
      lock: the lock on it; None in processes other than 0.
      name: of the workdir, for people: the path, or the address.
      copy: of one at an address, the staging folder; process 0's is what uploads it.
    """

    path: pathlib.Path
    lock: Lock | None
    name: str
    copy: staging.Copy | None = None

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
      workdir: folder of the run, or an address.
      break_lock: take it from a run that may be alive.
      stopped: asked while it is not clear yet whether another run is alive; True gives up.

    Raises:
      lock.LockedError: another run uses it.
      WorkdirError: not writable, or the processes do not see the same folder.
      bucket.BucketError: an address that can't be reached or written.
      mirror.MirrorError: at the end, what is in the staging folder could not be uploaded.
      ValueError: an address of a kind that can't be written to.
    """
    storage.check_address(workdir)
    name = storage.absolute(workdir)
    bucket = None if storage.is_local(name) else bucket_lib.Bucket(name)
    name = bucket.address if bucket else os.fspath(pathlib.Path(name))
    path = staging.folder_of(name, jax.process_index()) if bucket else pathlib.Path(name)
    held: Workdir | None = None
    problem: Exception | None = None
    with contextlib.ExitStack() as stack:
        try:
            held = _take(stack, name, bucket, path, break_lock, stopped)
        except (bucket_lib.BucketError, staging.CopyError) as error:
            problem = error
        except OSError as error:
            problem = _unwritable(path, error, staged=bucket is not None)
        except (ValueError, RunError) as error:
            problem = error
        with _uploaded(held.copy if held else None):
            # All of them learn of it, for one that is alone in a collective would hang there.
            elsewhere = multihost.first_problem(str(problem) if problem else "")
            if problem is not None:
                raise problem
            if elsewhere or held is None:
                raise WorkdirError(
                    f"another process of this run could not take workdir {name}: {elsewhere}"
                ) from ProcessesError(elsewhere)
            if bucket is None:
                check_shared(path)
            else:
                token = _token(held.lock)
                with multihost.together(f"workdir {name} can't be brought to all processes"):
                    held = _with_copy(held, bucket, token)
            yield held


def _take(
    stack: contextlib.ExitStack,
    name: str,
    bucket: bucket_lib.Bucket | None,
    path: pathlib.Path,
    break_lock: bool,
    stopped: Callable[[], bool],
) -> Workdir:
    """What this process can take of a workdir on its own; ``stack`` lets go of it."""
    check_writable(path.parent if bucket else path, staged=bucket is not None)
    lock: Lock | None = None
    if jax.process_index() == 0:
        if bucket:
            bucket_lib.probe(bucket)
        place = bucket_lib.LockFile(bucket, FILE_NAME) if bucket else path
        lock = Lock(place, force=break_lock, stopped=stopped)
        stack.push(functools.partial(_release, lock))
    if bucket is None:
        return Workdir(path, lock, name)
    last = last_writer(bucket) if lock else ""
    staged = StagingFolder(name, jax.process_index(), last=last, hasty=break_lock, stopped=stopped)
    stack.callback(staged.release)
    mirror: Mirror | None = None
    if lock is not None:
        mirror = Mirror(bucket, staged.path, lock)
        mirror.begin()
    return Workdir(staged.path, lock, name, mirror)


def _token(lock: Lock | None) -> str:
    """Of the lock, on all processes, one of which has it."""
    token = np.zeros(2, np.int32)
    if lock is not None:
        token = np.frombuffer(bytes.fromhex(lock.holder.token), np.int32)
    return multihost.broadcast(token).tobytes().hex()


def _with_copy(held: Workdir, bucket: bucket_lib.Bucket, token: str) -> Workdir:
    """With the copy of a process other than 0, once the run is known to hold the address."""
    if held.copy is not None:
        return held
    place = bucket_lib.LockFile(bucket, FILE_NAME)
    if place.read() is None:
        raise WorkdirError(
            f"{bucket / FILE_NAME}, which process 0 has written, is not there for this process: "
            "give all hosts the same endpoint and credentials, and no memory:// of their own"
        )
    shutil.rmtree(held.path, ignore_errors=True)  # parts of checkpoints, as the address has them
    held.path.mkdir(parents=True, exist_ok=True)
    copy = staging.Copy(bucket, held.path, Shared(place, token).look)
    copy.pull(lambda name: name in (CONFIG_FILE, HISTORY_FILE))
    return held._replace(copy=copy)


@contextlib.contextmanager
def _uploaded(mirror: staging.Copy | None) -> Iterator[None]:
    """Upload the rest at the end, however that comes."""
    if not isinstance(mirror, Mirror):
        yield
        return
    try:
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            try:
                mirror.close()
            except Exception as second:  # never hide the first error behind this one
                logger.error("%s", second)
            raise
        mirror.close()
    except KeyboardInterrupt:
        raise mirror.interrupted() from None


def _release(lock: Lock, kind: type[BaseException] | None, *_: object) -> None:
    """Let go of the lock; who interrupts does not wait for a store that does not answer."""
    if kind is None or not issubclass(kind, KeyboardInterrupt):
        lock.release()
        return
    releasing = threading.Thread(target=lock.release, daemon=True)
    releasing.start()
    releasing.join(_PARTING_SECONDS)


@contextlib.contextmanager
def lent(
    workdir: str | os.PathLike[str], wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[pathlib.Path, staging.Copy | None]]:
    """A workdir to look at, without its lock; of an address a temporary copy.

    Args:
      workdir: folder of a run, or an address.
      wanted: of an address, the names of files that are needed, beside checkpoints.

    Yields:
      The folder, and what it is a copy of. What is written into a copy is uploaded at the end.

    Raises:
      OSError: the address can't be read, or what was written there could not be uploaded.
    """
    storage.check_address(workdir)
    place = storage.absolute(workdir)
    if storage.is_local(place):
        yield pathlib.Path(place), None
        return
    with staging.Borrowed(place, wanted) as copy:
        yield copy.folder, copy
        copy.push()


def check_writable(path: pathlib.Path, *, staged: bool = False) -> None:
    """Create ``path`` and prove by a file that it can be written.

    Args:
      path: the workdir.
      staged: whether it is the staging folder of one at an address, for the message.

    Raises:
      WorkdirError: it can't.
    """
    probe = path / f".write_probe_{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise _unwritable(path, error, staged=staged) from error


def _unwritable(path: pathlib.Path, error: OSError, *, staged: bool) -> WorkdirError:
    what, way = "workdir", "choose another --workdir"
    if staged:
        what, way = "staging folder", "name another place in the environment's JAXCLIP_STAGING"
    is_file = isinstance(error, (FileExistsError, NotADirectoryError))
    plain = "it is a file, or lies in one" if is_file else error.strerror or error
    why = storage.bad_link(path) or plain
    return WorkdirError(f"{what} {path} can't be written ({why}); {way}")


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
