"""What is in a ZIP archive, and its files as streams, without unpacking it.

The standard library's ``ZipFile`` keeps an object of half a kilobyte for each file, and one handle
for all threads. Here it is a name and a number, and each file that is read has a handle of its own;
reading is ``zipfile.ZipExtFile``'s, which checks lengths and checksums.
"""

from __future__ import annotations

import io
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from jaxclip.data import file_kinds
from jaxclip.data.importer import packed
from jaxclip.data.importer.archive_index import ArchiveIndex

ENDING = ".zip"

# APPNOTE.TXT of PKWARE, version 6.3: the file's header (4.3.7), the directory's entry (4.3.12), its
# end (4.3.16), and the two of more than 4 GiB or 65 535 files (4.3.14, 4.3.15).
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s4B4H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_LONGEST_COMMENT = (1 << 16) - 1
_IS_ENCRYPTED, _IS_UTF8 = 1, 1 << 11
_SIZES_64, _UNICODE_PATH = 1, 0x7075
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "xz", 98: "PPMd"}
_AGAIN = "copy it again, or move it away"


class _Entry(NamedTuple):
    """An entry of the directory: where it is, the file's name, and the rest as it stands."""

    position: int
    name: bytes
    fields: tuple[Any, ...]
    extra: bytes

    @property
    def flags(self) -> int:
        return int(self.fields[5])


class ZipIndex(ArchiveIndex):
    """The files of a ZIP archive.

    Args:
      file: the archive.
      encoding: of names that are no UTF-8, nor said to be; that of DOS if it is "utf-8".

    Raises:
      ValueError: it is no archive, damaged, one part of several, or needs a password.
      OSError: it cannot be read.
    """

    def __init__(self, file: pathlib.Path, encoding: str = "utf-8"):
        super().__init__(file)
        encoding = "cp437" if encoding.lower() in ("utf-8", "utf8") else encoding
        with open(file, "rb") as raw:
            self._begin, end, self._shift = _directory(file, raw)
            count = locked = 0
            for entry in _entries(file, raw, self._begin, end):
                name = _text(entry, encoding).partition("\0")[0].replace("\\", "/")
                is_file = self._add(name, entry.position - self._begin)
                count += is_file
                locked += is_file and bool(entry.flags & _IS_ENCRYPTED)
        if count and locked == count:
            raise ValueError(f"{file} is encrypted; unpack it with its password first")
        self._sort()

    def size(self, path: str) -> int:
        with open(self.file, "rb") as raw:
            return self._info(raw, path).file_size

    def open(self, path: str) -> BinaryIO:
        raw = open(self.file, "rb")  # noqa: SIM115  # the stream closes it
        try:
            info = self._info(raw, path)
            info.filename = str(self.file)  # for errors
            if info.flag_bits & _IS_ENCRYPTED:
                raise OSError(f"it is encrypted; unpack {self.file} with its password first")
            if info.compress_type not in _METHODS:
                number = info.compress_type
                method = _OTHER_METHODS.get(number, f"method {number}")
                raise OSError(
                    f"it is compressed by {method}, which is not read; unpack {self.file} first"
                )
            raw.seek(info.header_offset)
            header = raw.read(_LOCAL.size)
            if len(header) < _LOCAL.size or not header.startswith(b"PK\3\4"):
                raise zipfile.BadZipFile("nothing begins where it should")
            *_, name_size, extra_size = _LOCAL.unpack(header)
            raw.seek(name_size + extra_size, os.SEEK_CUR)
            stream = _Stream(raw, "r", info, close_fileobj=True)  # type: ignore[arg-type]
            return io.BufferedReader(stream, 1 << 16)  # type: ignore[return-value]
        except (ValueError, OverflowError, *packed.DAMAGE) as error:  # of an absurd place, too
            raw.close()
            raise OSError(f"{self.file} is damaged: {error}") from error
        except BaseException:
            raw.close()
            raise

    def read(self, path: str) -> bytes:
        with self.open(path) as stream:
            return stream.read()

    def _info(self, raw: BinaryIO, path: str) -> zipfile.ZipInfo:
        position = self._position(path)
        if position is None:
            raise FileNotFoundError(f"{self.file} holds no {path}")
        position += self._begin
        entry = next(_entries(self.file, raw, position, position + 1))
        return _info(entry, self._shift)


class _Stream(zipfile.ZipExtFile):
    """A file whose damage is an OSError without a number."""

    def read(self, n: int | None = -1) -> bytes:
        try:
            return super().read(n)
        except packed.DAMAGE as error:
            raise OSError(f"{self.name} is damaged: {error}") from error


def _directory(file: pathlib.Path, raw: BinaryIO) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how far all offsets are off, for what is put before
    the archive."""
    size = raw.seek(0, os.SEEK_END)
    start = max(0, size - _END.size - _LONGEST_COMMENT)
    raw.seek(start)
    tail = raw.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or len(tail) < place + _END.size:
        raise ValueError(f"{file} {_no_end(raw, size)}")
    _, disk, disks, _, _, length, offset, _ = _END.unpack_from(tail, place)
    end = start + place
    raw.seek(max(0, end - _LOCATOR_64.size))
    locator = raw.read(_LOCATOR_64.size)
    if locator.startswith(b"PK\6\7"):
        # The record stands before the locator; its offset does not count what is put before.
        raw.seek(max(0, end - _LOCATOR_64.size - _END_64.size))
        record = raw.read(_END_64.size)
        if not record.startswith(b"PK\6\6"):
            raise ValueError(f"{file} is a damaged ZIP archive: its end is none; {_AGAIN}")
        _, _, _, _, disk, disks, _, _, length, offset = _END_64.unpack(record)
        end -= _LOCATOR_64.size + _END_64.size
    if disk or disks:
        raise ValueError(
            f"{file} is one part of an archive of several; join them with `zip -s 0 {file.name} "
            "--out all.zip`, or unpack it first"
        )
    begin = end - length
    if begin < offset:
        raise ValueError(f"{file} is a damaged ZIP archive: a piece of it is missing; {_AGAIN}")
    return begin, end, begin - offset


def _no_end(raw: BinaryIO, size: int) -> str:
    """What a file is that does not end as an archive does."""
    raw.seek(0)
    begin = raw.read(1024)
    if begin.startswith(b"PK"):
        return f"is a ZIP archive that is cut off: the list at its end is missing; {_AGAIN}"
    return f"is no ZIP archive, but {file_kinds.kind_of(begin)}; {_AGAIN}" if size else "is empty"


def _entries(file: pathlib.Path, raw: BinaryIO, begin: int, end: int) -> Iterator[_Entry]:
    raw.seek(begin)
    position = begin
    while position < end:
        data = raw.read(_ENTRY.size)
        if len(data) < _ENTRY.size or not data.startswith(b"PK\1\2"):
            raise ValueError(f"{file} is a damaged ZIP archive: its list is torn; {_AGAIN}")
        fields = _ENTRY.unpack(data)
        name_size, extra_size, comment_size = fields[12:15]
        rest = raw.read(name_size + extra_size + comment_size)
        yield _Entry(position, rest[:name_size], fields, rest[name_size : name_size + extra_size])
        position += _ENTRY.size + len(rest)


def _extras(extra: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        yield kind, extra[place + 4 : place + 4 + size]
        place += 4 + size


def _text(entry: _Entry, encoding: str) -> str:
    """A file's name.

    It should be said to be UTF-8 where it is; macOS and Python's makers of archives often do not.
    """
    for kind, value in _extras(entry.extra) if not entry.name.isascii() else ():
        is_own = kind == _UNICODE_PATH and value[1:5] == zlib.crc32(entry.name).to_bytes(
            4, "little"
        )
        if is_own:
            return value[5:].decode("utf-8", "replace")
    try:
        return entry.name.decode("utf-8")
    except UnicodeDecodeError:
        is_utf8 = entry.flags & _IS_UTF8
        return entry.name.decode("utf-8" if is_utf8 else encoding, "replace")


def _info(entry: _Entry, shift: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("member")
    info.flag_bits, info.compress_type = entry.fields[5:7]
    info.CRC, info.compress_size, info.file_size = entry.fields[9:12]
    info.header_offset = entry.fields[18]
    wide = next((value for kind, value in _extras(entry.extra) if kind == _SIZES_64), b"")
    for name in ("file_size", "compress_size", "header_offset"):
        if getattr(info, name) == 0xFFFFFFFF and len(wide) >= 8:
            setattr(info, name, int.from_bytes(wide[:8], "little"))
            wide = wide[8:]
    info.header_offset += shift
    return info
