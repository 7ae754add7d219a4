"""The header of a JPEG, and less of the picture to decode: the rows below what is wanted.

A decoder goes through a JPEG from the top and stops after as many rows as its header says. So a
header that says fewer saves the time of those below, of the rows that are left no bit changes (but
in the last one or two, for which colours are interpolated), and no decoder has to know of it.
"""

from __future__ import annotations

from typing import NamedTuple

# Frames that are decoded row by row: baseline and extended, Huffman coded. Others begin with all
# of a coarse picture.
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
# Where parts of a colour profile stand, and how they begin: with number and count behind it.
_PROFILE, _PROFILE_BEGIN = 0xE2, b"ICC_PROFILE\x00"


class Header(NamedTuple):
    """What stands before the first scan.

    Attributes:
      height_at: where the number of rows stands; -1 for a frame that is not decoded row by row.
      scan_at: where the first scan begins.
    """

    height_at: int
    scan_at: int


def read(data: bytes) -> Header | None:
    """The header of a JPEG; None if it is damaged, or of a kind that decoders repair."""
    height_at, start, end = 0, 2, len(data) - 3
    while start < end and data[start] == 0xFF:
        code = data[start + 1]
        if code == 0xFF:  # padding
            start += 1
            continue
        if code in _FRAMES:
            if height_at:
                return None
            height_at = start + 5 if code in _SEQUENTIAL else -1
        if code == _SCAN:
            return Header(height_at, start) if height_at else None
        start += 2 + (data[start + 2] << 8 | data[start + 3])
    return None


def colour_profile(data: bytes) -> bytes | None:
    """The colour profile of a JPEG, wherever it stands before the first scan; None if it has none.

    It may be in up to 255 parts, in any order. Of two profiles the first counts.
    """
    parts: dict[int, bytes] = {}
    start, end, total = 2, len(data) - 3, 0
    while start < end and data[start] == 0xFF and data[start + 1] != _SCAN:
        if data[start + 1] == 0xFF:  # padding
            start += 1
            continue
        length = data[start + 2] << 8 | data[start + 3]
        if data[start + 1] == _PROFILE and data.startswith(_PROFILE_BEGIN, start + 4):
            content = data[start + 4 : start + 2 + length].ljust(14, b"\0")
            total = total or content[13]
            parts.setdefault(content[12], content[14:])
        start += 2 + length
    wanted = range(1, total + 1)
    return b"".join(parts[n] for n in wanted) if total and all(n in parts for n in wanted) else None


def shortened(data: bytes, header: Header, height: int) -> bytearray | None:
    """A copy of a JPEG that says that it has so many rows.

    Args:
      data: of the file.
      header: of the file.
      height: at least 1, fewer than it has.

    Returns:
      The copy; None if the file is not of a kind for which this works, or has no end, and so may
      lack rows.
    """
    # The end-of-image marker can't be part of a scan's coded data.
    if header.height_at < 0 or data.rfind(b"\xff\xd9") < header.scan_at:
        return None
    copy = bytearray(data)
    copy[header.height_at : header.height_at + 2] = height.to_bytes(2, "big")
    return copy
