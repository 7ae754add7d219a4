"""Compressed files as streams: gzip, bzip2, xz and Zstandard, known by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

ENDINGS = (".gz", ".bz2", ".xz", ".zst")

# What reading damaged bytes raises, besides OSError without a number.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def _zstandard(raw: BinaryIO) -> Any:
    import pyarrow

    stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return io.BufferedReader(stream)


_OPENERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstandard,
}


def unpacked(raw: BinaryIO) -> Any:
    """What a file open at its beginning holds, unpacked if it is compressed.

    Returns:
      A file with ``peek``, as :class:`io.BufferedReader` has it.
    """
    begin = raw.read(6)
    raw.seek(0)
    for magic, opener in _OPENERS.items():
        if begin.startswith(magic):
            return opener(raw)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(Any, raw))


def is_zstandard(raw: BinaryIO) -> bool:
    """Whether a file open at its beginning is compressed with Zstandard."""
    begin = raw.read(4)
    raw.seek(0)
    return begin == b"\x28\xb5\x2f\xfd"


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading says that the compressed bytes are damaged."""
    return isinstance(error, DAMAGE) or (isinstance(error, OSError) and error.errno is None)
