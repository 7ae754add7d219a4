"""Files below an address of an object store, to write as well: ``gs://``, ``s3://``, fsspec's.

:mod:`.remote` reads them; here they are also written, removed, and changed on a condition, which
is what a lock needs. Amazon's and Google's stores know conditions themselves (but Amazon's removes
on none: TensorStore looks just before); of other schemes a condition is as good as their file
system's exclusive create.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from jaxclip.data import remote

# Seconds for one request, and bytes that are written in another one at least.
_TIMEOUT, _SLOWEST = 120.0, 500_000.0
# TensorStore itself tries so often, with its own back-off, before it says that it failed: some
# seconds in all, for who calls has a patience of its own.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "4s"}


class BucketError(OSError):
    """An object store can't be reached or refuses; the message names the address and the reason."""


class Bucket:
    """The files below an address.

    Args:
      address: with its scheme, such as ``s3://bucket/runs/one``.

    Raises:
      ValueError: of a scheme that nothing here writes to, or without a bucket.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        scheme, _, rest = self.address.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme in ("http", "https") or not bucket:
            raise ValueError(
                f"{address!r} is no address that can be written to, such as gs://bucket/folder"
            )
        self._prefix = f"{key}/" if key else ""
        self._store = _open(f"{scheme}://{bucket}/")

    def __truediv__(self, name: str) -> str:
        return f"{self.address}/{name}"

    def names(self, folder: str = "") -> list[str]:
        """Names of all files, or of those below a folder (which ends with a slash), sorted."""
        found = self._try(
            f"{self / folder} can't be listed",
            lambda: remote.names_below(self._store, self._prefix + folder, self / folder),
        )
        below = (name.removeprefix(self._prefix) for name in found if name.startswith(self._prefix))
        # Consoles and mounted buckets make empty files that stand for folders.
        return sorted(name for name in below if not name.endswith("/"))

    def read(self, name: str, size: int = 0) -> bytes | None:
        """All bytes of a file, of about ``size``; None if there is none."""
        found = self._read(name, size)
        return None if found.state == "missing" else bytes(found.value)

    def read_part(self, name: str, offset: int, length: int) -> bytes | None:
        """Bytes of a file; None if there is none, fewer or no bytes where it is shorter."""
        try:
            found = self._read(name, length, part=slice(offset, offset + length))
        except BucketError as error:
            if "OUT_OF_RANGE" in str(error.__cause__):  # TensorStore's word for a shorter file
                return b""
            raise
        return None if found.state == "missing" else bytes(found.value)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        self._try(
            f"{self / name} can't be written",
            lambda: self._store.write(self._prefix + name, content).result(
                timeout=_TIMEOUT / 4 + len(content) / _SLOWEST
            ),
        )

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        self._try(
            f"{self / name} can't be removed",
            lambda: self._store.write(self._prefix + name, None).result(timeout=_TIMEOUT),
        )

    def look(self, name: str, size: int = 0) -> tuple[bytes, bytes | None]:
        """The version of a file, and all its bytes, about ``size`` of them; None if there is none.

        The version is another one whenever somebody wrote the file; that of no file is
        :data:`.fsspec_store.MISSING`.
        """
        found = self._read(name, size)
        there = found.state != "missing"
        return found.stamp.generation, bytes(found.value) if there else None

    def version(self, name: str) -> bytes:
        """The version of a file alone, without its bytes."""
        return self._read(name, part=slice(0, 0)).stamp.generation

    def swap(self, name: str, before: bytes, content: bytes | None) -> bytes | None:
        """Write or remove (None) a file if it has the version ``before``.

        Returns:
          Its version now; None if it had another one.
        """
        stamp = self._try(
            f"{self / name} can't be {'removed' if content is None else 'written'}",
            lambda: self._store.write(self._prefix + name, content, if_equal=before).result(
                timeout=_TIMEOUT / 4 + len(content or b"") / _SLOWEST
            ),
        )
        return stamp.generation or None

    def create(self, name: str, content: bytes) -> bool:
        """Write a file if there is none; False if there is one. One of many at once succeeds."""
        return self._change(name, content, lambda found: found.state == "missing")

    def replace(self, name: str, before: bytes, after: bytes | None) -> bool:
        """Write a file, or remove it (None), if it still has the content ``before``."""
        return self._change(
            name, after, lambda found: found.state == "value" and bytes(found.value) == before
        )

    def _change(self, name: str, content: bytes | None, fits: Callable[[Any], bool]) -> bool:
        found = self._read(name)
        return fits(found) and self.swap(name, found.stamp.generation, content) is not None

    def _read(self, name: str, size: int = 0, *, part: slice | None = None) -> Any:
        return self._try(
            f"{self / name} can't be read",
            lambda: self._store.read(self._prefix + name, byte_range=part).result(
                timeout=_TIMEOUT + size / _SLOWEST
            ),
        )

    def _try(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # TensorStore and file systems raise anything
            raise BucketError(f"{what}: {remote.reason(error)}") from error


def _open(root: str) -> Any:
    if not root.startswith(("gs://", "s3://")):
        return remote.open_fsspec(root, fresh=True)
    import tensorstore

    spec = remote.spec_of(root)
    if isinstance(spec, str):
        spec = {"driver": "gcs", "bucket": root.removeprefix("gs://").rstrip("/")}
    context = {f"{kind}_request_retries": _RETRIES for kind in ("gcs", "s3")}
    try:
        return tensorstore.KvStore.open({**spec, "context": context}).result(timeout=_TIMEOUT)
    except Exception as error:
        raise ValueError(f"{root} can't be opened: {remote.reason(error)}") from error


class LockFile:
    """The file of a lock in a bucket, as :class:`jaxclip.lock.Lock` wants it.

    Args:
      bucket: what the lock is for.
      name: of the file.
    """

    def __init__(self, bucket: Bucket, name: str):
        self._bucket, self._name = bucket, name
        self.workdir = bucket.address

    def create(self, content: bytes) -> bool:
        """Make the file; False if there is one."""
        return self._bucket.create(self._name, content)

    def read(self) -> bytes | None:
        """Its content; None if there is none."""
        return self._bucket.read(self._name)

    def write(self, before: bytes, after: bytes) -> bool:
        """Replace the content; False if it is not ``before`` any more."""
        return self._bucket.replace(self._name, before, after)

    def remove(self, before: bytes) -> bool:
        """Remove the file; False if its content is not ``before`` any more."""
        return self._bucket.replace(self._name, before, None)


def probe(bucket: Bucket) -> None:
    """Prove that a bucket can be written to.

    Raises:
      BucketError: it can't; says why.
    """
    name = f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    bucket.write(name, b"probe")
    bucket.remove(name)
