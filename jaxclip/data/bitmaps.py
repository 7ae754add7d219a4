"""Windows bitmaps and icons that browsers show and Pillow refuses, or reads otherwise."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

_BITMAP, _ICON = b"BM", b"\x00\x00\x01\x00"
# Bytes before the header of a bitmap in a file, of the oldest header that has all of what is read
# here, and of those that hold masks of three and of four channels.
_BEFORE, _HEADER, _THREE_MASKS, _FOUR_MASKS = 14, 40, 52, 56
_BITFIELDS, _ALPHA_BITFIELDS = 3, 6
_MAX_SIDE, _MAX_PIXELS = 1 << 16, 1 << 27


def sound_bitmap(data: bytes) -> bytes | None:
    """The same picture in other bytes, of a bitmap of a kind that Pillow does not read.

    That is one of 16 or 32 bits whose channels are anywhere in them, one of 2 bits, and one that
    says it has more colours than there can be.

    Returns:
      None if it is no bitmap, is of another kind, or is damaged.
    """
    if not data.startswith(_BITMAP) or len(data) < _BEFORE + _HEADER:
        return None
    first, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    (colours,) = struct.unpack_from("<I", data, 46)
    if header < _HEADER or not 0 < width < _MAX_SIDE or not 0 < abs(height) < _MAX_SIDE:
        return None
    if bits in (1, 4, 8) and colours > 1 << bits:
        return data[:46] + struct.pack("<I", 1 << bits) + data[50:]
    if width * abs(height) > _MAX_PIXELS:
        return None
    stride = (width * bits + 31) // 32 * 4
    rows = data[first : first + stride * abs(height)]
    if bits not in (2, 16, 32) or len(rows) < stride * abs(height):
        return None
    samples = np.frombuffer(rows, np.uint8).reshape(-1, stride)
    if height > 0:
        samples = samples[::-1]
    if bits == 2 and not compression:
        palette = data[_BEFORE + header :][: 4 * (colours or 4)]
        pixels = _of_two_bits(samples, width, palette)
    elif bits > 2 and compression in (_BITFIELDS, _ALPHA_BITFIELDS):
        masks = _masks(data, header, compression)
        words = np.ascontiguousarray(samples).view(f"<u{bits // 8}")[:, :width]
        pixels = _of_masks(words, masks)
    else:
        return None
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def has_alpha(data: bytes) -> bool:
    """Whether the 16 bits of a bitmap's pixels have some for alpha, which Pillow leaves out."""
    if not data.startswith(_BITMAP) or len(data) < _BEFORE + _FOUR_MASKS:
        return False
    (header,) = struct.unpack_from("<I", data, _BEFORE)
    bits, compression = struct.unpack_from("<HI", data, 28)
    is_four = header >= _FOUR_MASKS or compression == _ALPHA_BITFIELDS
    of_masks = bits == 16 and compression in (_BITFIELDS, _ALPHA_BITFIELDS) and is_four
    return of_masks and any(data[66:70])


def _masks(data: bytes, header: int, compression: int) -> tuple[int, ...]:
    """Where in a pixel the channels are: of red, green and blue, and of alpha if there is any."""
    is_four = header >= _FOUR_MASKS or compression == _ALPHA_BITFIELDS
    count = 4 if is_four else 3
    masks = struct.unpack_from(f"<{count}I", data.ljust(_BEFORE + _FOUR_MASKS, b"\0"), 54)
    return masks if masks[-1] or not is_four else masks[:3]


def _of_masks(words: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """uint8[H, W, 3 or 4] of pixels in one number each; alpha of nothing but zeros is none."""
    channels = []
    for mask in masks:
        shift = (mask & -mask).bit_length() - 1 if mask else 0
        most = mask >> shift
        values = (words & words.dtype.type(mask & np.iinfo(words.dtype).max)) >> shift
        channels.append(np.rint(values * np.float32(255 / max(1, most))).astype(np.uint8))
    if len(channels) == 4 and not channels[3].any():
        channels.pop()
    return np.stack(channels, -1)


def _of_two_bits(samples: np.ndarray, width: int, palette: bytes) -> np.ndarray:
    """uint8[H, W, 3] of four pixels a byte; colours that the palette lacks are black."""
    index = np.stack([samples >> shift & 3 for shift in (6, 4, 2, 0)], -1)
    colours = np.frombuffer(palette[:16].ljust(16, b"\0"), np.uint8).reshape(4, 4)[:, 2::-1]
    return colours[index.reshape(len(samples), -1)[:, :width]]


def icon_with_masks(data: bytes) -> bytes:
    """An icon whose bitmaps say of each pixel whether one sees through it; all else unchanged.

    Where alpha is zero all over, as old programs wrote it, the mask behind the pixels counts, and
    where there is no mask either, all of the picture is seen.
    """
    if not data.startswith(_ICON) or len(data) < 6:
        return data
    (count,) = struct.unpack_from("<H", data, 4)
    if len(data) < 6 + 16 * count:
        return data
    entries, pictures, place = [], [], 6 + 16 * count
    for number in range(count):
        size, start = struct.unpack_from("<II", data, 14 + 16 * number)
        picture = _with_mask(data[start : start + size])
        entries.append(data[6 + 16 * number : 14 + 16 * number])
        entries.append(struct.pack("<II", len(picture), place))
        pictures.append(picture)
        place += len(picture)
        if place > 2 * len(data) + _MAX_SIDE:
            return data  # entries that share their pixels without end
    return data[:6] + b"".join(entries) + b"".join(pictures)


def _with_mask(picture: bytes) -> bytes:
    """One bitmap of an icon; a PNG, or one that is sound or damaged, unchanged."""
    if len(picture) < _HEADER or picture[:4] != struct.pack("<I", _HEADER):
        return picture
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", picture, 4)
    height //= 2
    if compression or not 0 < width <= 256 or not 0 < height <= 256:
        return picture
    (colours,) = struct.unpack_from("<I", picture, 32)
    palette = 4 * (colours or 1 << bits) if bits <= 8 else 0
    begin = _HEADER + palette
    end = begin + (width * bits + 31) // 32 * 4 * height
    stride = (width + 31) // 32 * 4
    mask = picture[end : end + stride * height]
    if len(picture) < end or (bits != 32 and len(mask) == stride * height):
        return picture
    hidden = np.zeros((height, width), np.uint8)
    if len(mask) == stride * height:
        rows = np.frombuffer(mask, np.uint8).reshape(height, stride)
        hidden = np.unpackbits(rows, axis=1)[:, :width]
    if bits != 32:
        return picture[:end] + bytes(stride * height)
    pixels = np.frombuffer(picture[begin:end], np.uint8).reshape(height, width, 4).copy()
    if pixels[..., 3].any():
        return picture
    pixels[..., 3] = np.where(hidden, 0, 255)
    return picture[:begin] + pixels.tobytes() + picture[end:]
