"""Encoded pictures that browsers show and Pillow refuses: the same picture in sound bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

_ICON, _CURSOR = b"\x00\x00\x01\x00", b"\x00\x00\x02\x00"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Bytes of additions that Pillow gives up on where they have less.
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9}
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Bytes put behind a JPEG that has no end: more than one of its blocks needs.
_FILLING = 256


def cursor_as_icon(data: bytes) -> bytes:
    """A Windows cursor as the icon that it is but for its first bytes; all else unchanged."""
    # A TGA begins alike, but for the number of pictures behind it.
    is_cursor = data.startswith(_CURSOR) and data[4:6].strip(b"\0")
    return _ICON + data[len(_CURSOR) :] if is_cursor else data


def png_without_extras(data: bytes) -> bytes | None:
    """A PNG without its texts and without additions that are damaged.

    Its pixels do not depend on them, but Pillow gives up where a text is very long, a checksum does
    not fit, or something is too short.

    Returns:
      None if it is no PNG, or there is nothing to leave out.
    """
    if not data.startswith(_PNG):
        return None
    kept, position = [_PNG], len(_PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        kind, chunk = data[position + 4 : position + 8], data[position:end]
        is_extra = bool(kind[:1].islower())
        is_sound = chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        is_sound = is_sound and length == _LENGTHS.get(kind, length)
        if kind == b"iCCP":  # a name, and how what follows is packed
            is_sound = is_sound and chunk[8:-4].partition(b"\0")[2][:1] == b"\0"
        if not is_extra or (is_sound and kind not in _PNG_TEXTS):
            kept.append(chunk)
        position = end
        if kind == b"IEND":
            break
    sound = b"".join(kept)
    return sound if len(sound) < min(position, len(data)) else None


def png_with_checksum(data: bytes) -> bytes | None:
    """A PNG whose packed pixels end with a checksum that does not fit them, with the right one.

    Returns:
      None if it is no PNG, its checksum is right, or its packed pixels are damaged.
    """
    if not data.startswith(_PNG) or len(data) < 33:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    before, position = [_PNG], len(_PNG)
    packed: list[bytes] = []
    behind: list[bytes] = []
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunk = data[position : position + 12 + length]
        if chunk[4:8] == b"IDAT":
            packed.append(chunk[8 : 8 + length])
        else:
            (behind if packed else before).append(chunk)
        position += 12 + length
    stream = b"".join(packed)
    unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # At most 16 bits of four channels, and seven passes with a byte a row.
        pixels = unpacking.decompress(stream[2:], height * (8 * width + 14) + 1)
    except zlib.error:
        return None
    checksum = struct.pack(">I", zlib.adler32(pixels))
    rest = unpacking.unused_data
    if not unpacking.eof or rest[:4] == checksum:
        return None
    chunk = b"IDAT" + stream[: len(stream) - len(rest)] + checksum
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"".join([*before, chunk, *behind])


def jpeg_with_end(data: bytes) -> bytes | None:
    """A JPEG that lacks its last two bytes, which only say that it ends there, with them.

    That nothing else is missing shows in that what follows makes no difference: of a picture that
    is cut, other bytes behind the cut would be other pixels.

    Returns:
      None if it is no JPEG, has its end, or lacks more than that.
    """
    data = data[:-1] if data.endswith(b"\xff") else data
    if not data.startswith(_JPEG) or data.endswith(_JPEG_END):
        return None
    first = None
    for filling in (b"\x00", b"\xaa"):
        try:
            image = Image.open(io.BytesIO(data + filling * _FILLING + _JPEG_END), formats=["JPEG"])
            pixels = np.asarray(image)
        except Exception:  # as in decode
            return None
        if first is not None and not np.array_equal(first, pixels):
            return None
        first = pixels
    return data + _JPEG_END


def is_cut_webp(data: bytes) -> bool:
    """Whether a WebP has fewer bytes than its first ones say."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return False
    return len(data) < 8 + int(struct.unpack_from("<I", data, 4)[0])


def webp_frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the first frame of a WebP; None if it is no animation."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X":
        return None
    position = 12
    while position + 24 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        if data[position : position + 4] == b"ANMF":
            x, y, width, height = (
                int.from_bytes(data[start : start + 3], "little")
                for start in range(position + 8, position + 20, 3)
            )
            return 2 * x, 2 * y, 2 * x + width + 1, 2 * y + height + 1
        position += 8 + length + length % 2
    return None
