"""Uploads what a run writes in its staging folder, so that the address has all of it.

The folder is the truth, and a pass makes the address equal to it, in an order in which a kill at
any place leaves an address that a run can go on from: files first (so that ``metrics.jsonl`` is
never behind a checkpoint that is there), then the files of new checkpoints, each committed by its
manifest, then old checkpoints are removed, each manifest first.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import secrets
import shutil
import threading
import time
from typing import Any

import jax
from etils import epath

from jaxclip import storage
from jaxclip.data.bucket import Bucket
from jaxclip.errors import RunError, UploadInterrupt
from jaxclip.lock import Lock, LostLockError
from jaxclip.train import manifest, staging

logger = logging.getLogger("jaxclip")

# A pass begins at each checkpoint, and as long after the last one; later where passes take long,
# so that they fill a tenth of the time at most.
SECONDS = 30.0
# How long the end of a run tries to upload the rest.
FINAL_SECONDS = 60.0
_LONGEST_PAUSE = 60.0


class MirrorError(RunError):
    """Not all of a run could be uploaded; the message says where it lies and how to go on."""


class Mirror(staging.Copy):
    """Keeps an address equal to a folder, in the background.

    Args:
      bucket: the address.
      folder: the staging folder.
      lock: of the address; nothing is uploaded under somebody else's.
    """

    def __init__(self, bucket: Bucket, folder: pathlib.Path, lock: Lock):
        super().__init__(bucket, folder, lock.look)
        self._lock = lock
        # What is at the address: files with their stamps here, checkpoints with their manifests.
        self._files: dict[str, tuple[int, int] | None] = {}
        self._checkpoints: dict[str, bytes | None] = {}
        # Files of checkpoints on their way there, as the manifest lists them.
        self._sent: dict[str, dict[str, Any]] = {}
        self._busy = threading.RLock()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="workdir_mirror", daemon=True)
        self._id = ""

    def begin(self) -> None:
        """Bring the folder to where the address is, and start uploading.

        A folder that did not write at the address last is behind it and starts anew from there. One
        that did may be ahead; if all of it was uploaded, the address may have newer files by now,
        such as an evaluation made elsewhere.

        Raises:
          OSError: the address can't be read or written, or the folder can't be written.
          lock.LostLockError: another run has taken the address over.
        """
        state = storage.read_json(self.folder / staging.STATE, {})
        theirs = last_writer(self.bucket)
        anew = not theirs or state.get("id") != theirs
        if anew:
            self._set_aside(state)
        else:
            self._drop_unfinished()
        self._id = secrets.token_hex(8) if anew else theirs
        equal = anew or bool(state.get("whole"))
        names = self.pull(again=equal)
        here = staging.stamps(self.folder) if equal else {}
        self._files = {name: here.get(name) for name in names if staging.is_uploaded(name)}
        for name in names:
            folder, _, rest = name.partition("/")
            step, _, file = rest.partition("/")
            if folder == staging.CHECKPOINTS and staging.STEP.fullmatch(step) and file:
                self._checkpoints.setdefault(step, None)
                if file == manifest.NAME:
                    self._checkpoints[step] = self.bucket.read(name)
        for step in [step for step, content in self._checkpoints.items() if content is None]:
            self._remove_checkpoint(step)  # a kill left it
        # The folder first: one that the address names without its knowing would start anew.
        self._note(whole=False)
        mark = {"id": self._id, "host": self._lock.holder.host, "folder": str(self.folder)}
        self.put(staging.MARK, json.dumps(mark).encode())
        if jax.process_count() > 1:
            self.sync()  # the others read at the address what this folder may be ahead with
        self._thread.start()

    def committed(self) -> None:
        """A checkpoint was committed or removed: begin a pass now."""
        self._wake.set()

    def close(self) -> None:
        """Upload the rest.

        Raises:
          MirrorError: it could not be uploaded.
          lock.LostLockError: another run has the address now.
        """
        self._closed.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if any(self._checkpoints.get(step) != text for step, text in self._committed().items()):
            logger.info("uploading the newest checkpoint to %s", self.bucket.address)
        began, pause = time.monotonic(), 1.0
        while True:
            try:
                self.sync()
                break
            except OSError as error:
                if time.monotonic() - began + pause > FINAL_SECONDS:
                    raise MirrorError(
                        f"not everything is at {self.bucket.address}: {error}; nothing is lost, "
                        f"all of it is in {self.folder}: the same command on this machine uploads "
                        "it and goes on"
                    ) from error
                logger.warning("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
            pause = min(2 * pause, 15.0)
        if not self._files and not self._checkpoints:
            self.drop(staging.MARK)  # a run that came to nothing leaves nothing
        self._note(whole=True)

    def interrupted(self) -> UploadInterrupt:
        """Begin nothing any more, as the user wants out at once; what to raise."""
        self._closed.set()
        self._wake.set()
        return UploadInterrupt(
            f"interrupted, perhaps before everything was at {self.bucket.address}; nothing is "
            f"lost, all of it is in {self.folder}: the same command on this machine uploads it and "
            "goes on"
        )

    def sync(self) -> None:
        """One pass.

        Raises:
          OSError: the address can't be reached; what was uploaded stays, the next pass goes on.
          lock.LostLockError: another run has the address now.
        """
        with self._busy:
            self._pass()

    def clear(self, step: str) -> None:
        """Remove what the address has of a checkpoint ``step_…`` that is to be saved anew.

        Raises:
          OSError: the address can't be reached.
        """
        with self._busy:
            if step in self._checkpoints:
                self._remove_checkpoint(step)

    def finish(self, step: str, content: bytes) -> None:
        """Commit a checkpoint whose files are at the address already, by its manifest.

        Raises:
          OSError: the address can't be reached.
          lock.LostLockError: another run has the address now.
        """
        with self._busy:
            self._pass()  # the files of the run are not to be behind it
            self._lock.look()
            self.put(f"{staging.CHECKPOINTS}/{step}/{manifest.NAME}", content)
            self._checkpoints[step] = content

    def _pass(self) -> None:
        self._lock.check()
        here = self._committed()
        files = staging.stamps(self.folder)
        changed = [name for name, stamp in files.items() if self._files.get(name) != stamp]
        gone = self._files.keys() - files.keys()
        new = [step for step, content in here.items() if self._checkpoints.get(step) != content]
        if not (changed or gone or new or self._removed()):
            return
        self._lock.look()
        staging.each(lambda name: self._upload(name, files[name]), changed)
        for name in gone:
            self.drop(name)
            del self._files[name]
        for step in new:
            self._upload_checkpoint(step, here[step])
        for step in self._removed():
            self._remove_checkpoint(step)

    # In the background.

    def _run(self) -> None:
        pause, behind, took = 0.0, 0.0, 0.0
        while not self._closed.is_set():
            if pause:
                self._closed.wait(pause)  # a checkpoint does not make the network come back
            else:
                self._wake.wait(max(SECONDS, 10 * took))
            self._wake.clear()
            if self._closed.is_set():
                return
            began = time.monotonic()
            try:
                self.sync()
            except LostLockError:
                return  # the run itself learns of it, and ends
            except Exception as error:  # whatever it is, the run goes on, and the end tells
                if not behind:
                    behind = began
                    logger.warning(
                        "uploads to %s are behind: %s; training goes on, its files are in %s, and "
                        "uploads are tried again",
                        self.bucket.address,
                        error,
                        self.folder,
                    )
                pause = min(2 * pause or 1.0, _LONGEST_PAUSE)
                continue
            took = time.monotonic() - began
            if behind:
                late = time.monotonic() - behind
                logger.warning("uploads to %s caught up after %.0f s", self.bucket.address, late)
            pause = behind = 0.0

    # The parts of a pass.

    def _committed(self) -> dict[str, bytes]:
        """``{step_…: its manifest}`` of the checkpoints in the folder, ascending.

        Those that are not committed are left out, and those whose manifest is damaged: the address
        may have them whole.
        """
        found = {}
        for path in self._folders():
            with contextlib.suppress(OSError, manifest.ManifestError):
                manifest.read(epath.Path(path))
                found[path.name] = (path / manifest.NAME).read_bytes()
        return found

    def _folders(self) -> list[pathlib.Path]:
        """The folders of checkpoints, ascending; none of those that are being removed."""
        paths = (self.folder / staging.CHECKPOINTS).glob("step_*")
        return sorted(path for path in paths if staging.STEP.fullmatch(path.name))

    def _removed(self) -> list[str]:
        """Checkpoints at the address that are no more in the folder."""
        base = self.folder / staging.CHECKPOINTS
        return [step for step in self._checkpoints if not (base / step).exists()]

    def _upload(self, name: str, stamp: tuple[int, int]) -> None:
        try:
            content = (self.folder / name).read_bytes()
        except FileNotFoundError:
            return  # the next pass sees that it is gone
        self.put(name, content)
        self._files[name] = stamp

    def _upload_checkpoint(self, step: str, content: bytes) -> None:
        folder, base = self.folder / staging.CHECKPOINTS / step, f"{staging.CHECKPOINTS}/{step}"
        mark = f"{base}/{manifest.NAME}"
        table, before = _table(content), _table(self._checkpoints.get(step))
        if table != before:
            # What is there of it, unless this upload broke off, was saved earlier.
            sent = self._sent.get(step, {})
            left = [name for name, row in table.items() if sent.get(name) != row]
            if step in self._checkpoints and len(left) == len(table):
                self._remove_checkpoint(step)  # no checkpoint until it is whole
            self._checkpoints[step], self._sent[step] = None, sent

            def upload(name: str) -> None:
                self.put(f"{base}/{name}", (folder / name).read_bytes())
                sent[name] = table[name]

            try:
                staging.each(upload, left)
            except FileNotFoundError:
                return  # removed meanwhile: the rest of this pass or the next cleans up
            self._lock.look()  # this took a while
        self.put(mark, content)
        self._checkpoints[step] = content
        self._sent.pop(step, None)

    def _remove_checkpoint(self, step: str) -> None:
        base = f"{staging.CHECKPOINTS}/{step}"
        self.drop(f"{base}/{manifest.NAME}")
        self._checkpoints[step] = None
        self._sent.pop(step, None)
        staging.each(self.drop, self.bucket.names(f"{base}/"))
        del self._checkpoints[step]

    # The folder.

    def _set_aside(self, state: dict[str, Any]) -> None:
        """Empty the folder; what may not be at the address is kept beside it."""
        if not any(self.folder.iterdir()):
            return
        if state.get("whole"):
            shutil.rmtree(self.folder)
        else:
            aside = self.folder.with_name(
                f"{self.folder.name}.left-{time.strftime('%Y%m%d-%H%M%S')}"
            )
            self.folder.rename(aside)
            logger.warning(
                "%s is of another run at %s, or was overtaken by one; it is kept as %s",
                self.folder, self.bucket.address, aside,
            )  # fmt: skip
        self.folder.mkdir(parents=True)

    def _drop_unfinished(self) -> None:
        """Remove what a kill left of saves, lest it is taken for a part of what the address has."""
        for path in self._folders():
            if not (path / manifest.NAME).exists():
                shutil.rmtree(path)

    def _note(self, *, whole: bool) -> None:
        storage.write_json(self.folder / staging.STATE, {"id": self._id, "whole": whole})


def last_writer(bucket: Bucket) -> str:
    """What an address calls the staging folder that wrote there last; empty if none did.

    Raises:
      OSError: the address can't be read.
    """
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(bucket.read(staging.MARK) or b"{}").get("id", "")
    return ""


def _table(content: bytes | None) -> dict[str, Any]:
    """The files that a manifest lists; none where there is no manifest, or a damaged one."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(content or b"{}")["files"]
    return {}
