"""File systems that fsspec knows and TensorStore does not (``az://``, ``hf://``, ``memory://``)."""

from __future__ import annotations

import contextlib
import hashlib
from types import SimpleNamespace
from typing import Any

# The version of a file that is not there, as TensorStore has it.
MISSING = b"\x02"


class FsspecStore:
    """A file system, asked as :mod:`.remote` asks TensorStore's key-value stores.

    Args:
      root: the address that keys are below, with its scheme.
      fresh: ask the file system each time, for others write there, too.

    Raises:
      ImportError: fsspec, or what it needs for the scheme, is not installed.
      Exception: whatever the file system has against it.
    """

    def __init__(self, root: str, *, fresh: bool = False):
        import fsspec

        options = {"use_listings_cache": False} if fresh else {}
        self._files, base = fsspec.core.url_to_fs(root, **options)
        self._base = f"{base.rstrip('/')}/" if base else ""

    def read(self, key: str, byte_range: slice | None = None) -> Now:
        """Bytes of a file, as ``KvStore.read``; a range that is empty says whether there is one."""
        path = self._base + key
        try:
            about = self._files.info(path)
            if about["type"] != "file":
                raise FileNotFoundError(path)
            value = b"" if byte_range == slice(0, 0) else self._content(path, byte_range)
        except FileNotFoundError:
            nothing = SimpleNamespace(generation=MISSING)
            return Now(SimpleNamespace(state="missing", value=b"", stamp=nothing))
        # What is said of a file changes with it; its own key for that is made of the same.
        stamp = hashlib.sha256(repr(sorted(about.items())).encode()).digest()
        return Now(
            SimpleNamespace(state="value", value=value, stamp=SimpleNamespace(generation=stamp))
        )

    def _content(self, path: str, byte_range: slice | None) -> bytes:
        if byte_range is None:
            return self._files.cat_file(path)
        first, last = byte_range.start or 0, byte_range.stop
        if first < 0 or last is None:  # not all systems count from the end
            size = self._files.size(path)
            first, last = (first if first >= 0 else max(0, size + first)), last or size
        return self._files.cat_file(path, start=first, end=last)

    def names(self, folder: str) -> list[str]:
        """Keys of all files below a folder, which ends with a slash or is empty."""
        found = self._files.find(self._base + folder)
        return [path.removeprefix(self._base) for path in found]

    def write(self, key: str, value: bytes | None, if_equal: bytes | None = None) -> Now:
        """Write or remove (None) a file, as ``KvStore.write``.

        Args:
          key: its key.
          value: its content; None removes it.
          if_equal: the generation that it must have, or :data:`MISSING`. Exact for no file where
            the file system creates exclusively; else it is looked at just before.

        Returns:
          A result with an empty ``generation`` where the condition does not hold.
        """
        path, held = self._base + key, SimpleNamespace(generation=MISSING)
        failed = Now(SimpleNamespace(generation=b""))
        if (
            if_equal is not None
            and self.read(key, slice(0, 0)).result().stamp.generation != if_equal
        ):
            return failed
        if value is None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(path)
            return Now(held)
        parent = path.rpartition("/")[0]
        if parent:
            self._files.makedirs(parent, exist_ok=True)
        try:
            self._files.pipe_file(
                path, value, mode="overwrite" if if_equal != MISSING else "create"
            )
        except FileExistsError:
            return failed
        return Now(self.read(key, slice(0, 0)).result().stamp if if_equal is not None else held)


class Now:
    """A result that is there already."""

    def __init__(self, value: Any):
        self._value = value

    def result(self, timeout: float | None = None) -> Any:
        """The value."""
        return self._value
