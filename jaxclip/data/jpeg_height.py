"""Less of a JPEG to decode: the rows below what is wanted.

A decoder goes through a JPEG from the top and stops after as many rows as its header says. So a
header that says fewer saves the time of those below, of the rows that are left no bit changes (but
in the last one or two, for which colours are interpolated), and no decoder has to know of it.
"""

from __future__ import annotations

# Frames that are decoded row by row: baseline and extended, Huffman coded. Others begin with all
# of a coarse picture.
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = tuple(code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC))
_SCAN = 0xDA


def shortened(data: bytes, height: int) -> bytearray | None:
    """A copy of a JPEG that says that it has so many rows.

    Args:
      data: of the file.
      height: at least 1, fewer than it has.

    Returns:
      The copy; None if the file is not of a kind for which this works, or has no end, and so may
      lack rows.
    """
    frame = position = -1
    start = 2
    while start + 4 <= len(data) and data[start] == 0xFF:
        code = data[start + 1]
        if code == 0xFF:  # padding
            start += 1
            continue
        if code in _FRAMES:
            if code not in _SEQUENTIAL or frame >= 0:
                return None
            frame = start + 5
        if code == _SCAN:
            position = start
            break
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    # The end-of-image marker can't be part of a scan's coded data.
    if frame < 0 or position < 0 or data.rfind(b"\xff\xd9") < position:
        return None
    copy = bytearray(data)
    copy[frame : frame + 2] = height.to_bytes(2, "big")
    return copy
