"""The local copy of a workdir at an address: where it lies, and what is brought into it.

A run appends to its files and replaces them, which object stores do not know. So a run at an
address works in a folder of this machine, and :mod:`.mirror` uploads what changes. Readers have a
copy in a temporary folder. Of checkpoints only manifests are brought at first, and the rest of one
when it is asked for.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from jaxclip import lock, storage
from jaxclip.data.bucket import Bucket, BucketError
from jaxclip.data.fsspec_store import MISSING
from jaxclip.train import manifest

CHECKPOINTS = "checkpoints"
# The folder of one.
STEP = re.compile(r"step_(\d{8,})")
# At the address: which staging folder wrote there last.
MARK = "staging.json"
# In the folder: its id in MARK, and whether all of it is at the address.
STATE = ".staging.json"
_FOLDERS = ("tensorboard/", "spikes/", "profile/")
# Requests at a time. A piece of a checkpoint is read whole, so this bounds memory, too.
_THREADS = 4
# How often a file is written again that somebody else changes meanwhile.
_ATTEMPTS = 5


def folder_of(address: str, process: int = 0, number: int = 1) -> pathlib.Path:
    """The folder in which a run at an address works: in ``$JAXCLIP_STAGING``, or the user's cache.

    Args:
      address: of the workdir.
      process: number of this process; each has a folder of its own.
      number: of the folder, where a run that may be alive has the first one.
    """
    base = os.environ.get("JAXCLIP_STAGING")
    if not base:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        base = os.path.join(cache, "jaxclip", "staging")
    address = address.rstrip("/")
    name = re.sub(r"[^\w.-]+", "_", address.rpartition("/")[2])[:40]
    digest = hashlib.sha256(address.encode()).hexdigest()[:16]
    folder = f"{name}-{digest}" + (f"-{process}" if process else "")
    folder += f".{number}" if number > 1 else ""
    return pathlib.Path(base).absolute() / folder / "run"


def is_uploaded(name: str) -> bool:
    """Whether a file is one that a run writes; checkpoints go another way.

    What else lies at an address, such as data, is neither downloaded nor removed.
    """
    if name.startswith(_FOLDERS):
        return not name.endswith((".tmp", ".part"))
    own = name in (MARK, lock.FILE_NAME) or name.startswith(".") or "/" in name
    return not own and name.endswith((".json", ".jsonl", ".html"))


class CopyError(OSError):
    """A copy can't be written; the message names its folder and the setting that moves it."""


class Copy:
    """A folder that has what lies at an address, checkpoints as far as they were asked for.

    What a run changes there, :meth:`put` and :meth:`drop` do: always on the condition that the file
    has the version that it had before the lock was last seen to be the run's. So what a run sends
    that was overtaken, a request that hung for hours included, changes nothing that the next one
    wrote.

    Args:
      bucket: the address.
      folder: the copy.
      look: raises if the address is another run's now; without, the copy is only read.
    """

    _setting = "JAXCLIP_STAGING"

    def __init__(
        self, bucket: Bucket, folder: pathlib.Path, look: Callable[[], None] | None = None
    ):
        self.bucket, self.folder = bucket, folder
        self._look = look
        # Of the files at the address, as far as they are known.
        self._versions: dict[str, bytes] = {}

    def pull(
        self, wanted: Callable[[str], bool] = lambda name: True, *, again: bool = False
    ) -> list[str]:
        """Download files and manifests of checkpoints that the folder lacks.

        Args:
          wanted: of the names of files, those to download.
          again: also the files that the folder has, as they are at the address now.

        Returns:
          Names of all files at the address.

        Raises:
          OSError: the address can't be read, or the folder can't be written.
        """
        names = self.bucket.names()
        files = [name for name in names if is_uploaded(name) and wanted(name)]
        manifests = [name for name in names if is_manifest(name)]
        have = {name for name in (*files, *manifests) if (self.folder / name).exists()}
        if again:
            have -= set(files)
        each(self._download, [name for name in (*files, *manifests) if name not in have])
        return names

    def fetch(self, name: str) -> None:
        """Download what the folder lacks of the checkpoint ``step_…``.

        What is missing at the address, too, is for who reads the checkpoint to tell.

        Raises:
          OSError: the address can't be read, or the folder can't be written.
        """
        base = f"{CHECKPOINTS}/{name}"
        self.fetch_manifest(name)
        try:
            files = manifest.read(epath.Path(self.folder / base))["files"]
        except manifest.ManifestError:
            return
        each(
            lambda item: self._download(f"{base}/{item[0]}", size=item[1][0]),
            [item for item in files.items() if _size(self.folder / base / item[0]) != item[1][0]],
        )

    def fetch_manifest(self, name: str) -> None:
        """Download the manifest alone; raises as :meth:`fetch`."""
        file = f"{CHECKPOINTS}/{name}/{manifest.NAME}"
        if not (self.folder / file).exists():
            self._download(file)

    def put(self, name: str, content: bytes) -> None:
        """Write a file at the address, unless that is another run's by now.

        Raises:
          OSError: the address can't be reached.
          lock.LostLockError: another run has it.
        """
        assert self._look is not None
        version = self._versions.get(name, MISSING)
        for _ in range(_ATTEMPTS):
            now = self.bucket.swap(name, version, content)
            if now is None:
                # Another file than was known is there: of an earlier run, of one that was
                # overtaken, or ours, if the answer that said so was lost.
                version, there = self.bucket.look(name, len(content))
                if there != content:
                    self._look()
                    continue
                now = version
            self._versions[name] = now
            return
        raise BucketError(f"{self.bucket / name} can't be written: somebody else writes it, too")

    def drop(self, name: str) -> None:
        """Remove a file at the address; raises as :meth:`put`."""
        assert self._look is not None
        version = self._versions.pop(name, None)
        for _ in range(_ATTEMPTS):
            if version is None:
                version = self.bucket.version(name)
                self._look()
            if version == MISSING or self.bucket.swap(name, version, None) is not None:
                return
            version = None
        raise BucketError(f"{self.bucket / name} can't be removed: somebody else writes it")

    def committed(self) -> None:
        """Told that a checkpoint was committed or removed in the folder."""

    def _download(self, name: str, size: int = 0) -> None:
        if ".." in name.split("/"):
            return  # it would be written outside of the folder: somebody else's bucket may try
        self._versions[name], content = self.bucket.look(name, size)
        if content is None:
            return
        target = self.folder / name
        temporary = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(target)
        except OSError as error:
            raise self.unwritable(name, error) from error

    def unwritable(self, name: str, error: OSError) -> CopyError:
        """What to raise if a file can't be copied into the folder."""
        return CopyError(
            f"{self.bucket / name} can't be copied to {self.folder}: "
            + storage.reason(error, self.folder, self._setting)
        )


class Borrowed(Copy):
    """A :class:`Copy` in a temporary folder, which is gone when it is closed.

    Args:
      address: of a workdir.
      wanted: which files are downloaded straight away, beside the manifests of checkpoints.
    """

    _setting = "TMPDIR"

    def __init__(self, address: str, wanted: Callable[[str], bool] = lambda name: False):
        self._temporary = tempfile.TemporaryDirectory(prefix="jaxclip_")
        super().__init__(Bucket(address), pathlib.Path(self._temporary.name))
        try:
            self.pull(wanted)
        except BaseException:
            self._temporary.cleanup()
            raise
        self._stamps = stamps(self.folder)

    def push(self) -> None:
        """Upload the files that were written since."""
        now = stamps(self.folder)
        changed = [name for name, stamp in now.items() if self._stamps.get(name) != stamp]
        each(lambda name: self.bucket.write(name, (self.folder / name).read_bytes()), changed)
        self._stamps = now

    def close(self) -> None:
        """Remove the folder."""
        self._temporary.cleanup()

    def __enter__(self) -> Borrowed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stamps(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """``{name: (size, time of change in ns)}`` of the files of a workdir that are uploaded."""
    found = {}
    for root, folders, files in os.walk(folder):
        inner = os.path.relpath(root, folder)
        prefix = "" if inner == "." else f"{inner}/"
        folders[:] = [name for name in folders if is_uploaded(f"{prefix}{name}/")]
        for name in filter(is_uploaded, (f"{prefix}{name}" for name in files)):
            try:
                about = (folder / name).stat()
            except FileNotFoundError:
                continue
            found[name] = (about.st_size, about.st_mtime_ns)
    return found


def is_manifest(name: str) -> bool:
    """Whether a file is what commits a checkpoint."""
    folder, _, rest = name.partition("/")
    step, _, file = rest.partition("/")
    return folder == CHECKPOINTS and bool(STEP.fullmatch(step)) and file == manifest.NAME


def each(function: Callable[[Any], None], items: Iterable[Any], threads: int = _THREADS) -> None:
    """Call a function for every item, some at a time.

    Raises:
      Exception: of the first call that failed; calls that have not begun are left out.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for future in [pool.submit(function, item) for item in items]:
            future.result()
    except BaseException as error:
        # Who interrupts does not wait for a store that does not answer.
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    pool.shutdown()


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
