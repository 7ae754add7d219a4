"""Bitmaps and icons that Chromium 156 shows: the pixels are those of its screenshots."""

import struct

import numpy as np
import pytest

from jaxclip.data.bitmaps import icon_with_masks, sound_bitmap
from jaxclip.data.decode import decode, size_of
from jaxclip.data.importer.images import prepare
from jaxclip.data.record import BadRecord

H, W = 16, 24
ROW, COLUMN = np.mgrid[:H, :W]
# Multiples of 17, which 4 bits hold.
RGB = np.stack([COLUMN % 16, ROW % 16, 15 - COLUMN % 16], -1).astype(np.uint8) * 17
ALPHA = np.where(COLUMN < 12, 255, 136).astype(np.uint8)
ON_WHITE = np.rint(RGB * (ALPHA[..., None] / 255) + 255.0 - ALPHA[..., None]).astype(np.uint8)
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [250, 250, 40]], np.uint8)
PALETTE = b"".join(bytes([*colour[::-1], 0]) for colour in COLOURS)
INDEX = (COLUMN // 2 % 4).astype(np.uint8)
MASKED = (COLUMN[:, :16] + ROW[:, :16]) % 3 == 0


def packed(bits, *channels):
    """Numbers that hold channels one behind the other, the last one lowest."""
    number = np.zeros((H, W), np.uint64)
    for channel in channels:
        number = (number << np.uint64(bits)) | (channel.astype(np.uint64) * (2**bits - 1) // 255)
    return number


def bitmap(bits, rows, masks=(), palette=b"", header=40, colours=0, compression=3, top=False):
    pixels = b"".join(np.ascontiguousarray(row).tobytes() for row in (rows if top else rows[::-1]))
    own = struct.pack("<IiiHHI", header, W, -H if top else H, 1, bits, compression)
    own += struct.pack("<IiiII", len(pixels), 0, 0, colours, 0)
    own += struct.pack(f"<{len(masks)}I", *masks) + palette
    size = 14 + len(own)
    return b"BM" + struct.pack("<IHHI", size + len(pixels), 0, 0, size) + own + pixels


def icon(bits, rows, mask=None):
    pixels = b"".join(np.ascontiguousarray(row).tobytes() for row in rows[::-1])
    if mask is not None:
        pixels += b"".join(row.tobytes() + bytes(2) for row in np.packbits(mask[::-1], axis=1))
    own = struct.pack("<IiiHHIIiiII", 40, 16, 32, 1, bits, 0, 0, 0, 0, 0, 0) + pixels
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, bits, len(own), 22) + own


R, G, B = np.moveaxis(RGB, 2, 0)
NIBBLES = packed(4, ALPHA, R, G, B).astype("<u2")
ONE_BIT = ((ALPHA > 200) * np.uint64(0x8000) | packed(5, R, G, B)).astype("<u2")
FIVES = np.rint((RGB.astype(int) * 31 // 255) * (255 / 31)).astype(np.uint8)
FOUR = (0xF00, 0xF0, 0xF, 0xF000)
TENS = packed(10, R, G, B).astype("<u4")
SWAPPED = packed(8, B, G, R).astype("<u4")
# Rows of bitmaps end where four bytes do.
TWO_BITS = np.packbits(np.stack([INDEX >> 1, INDEX & 1], -1).reshape(H, -1), axis=1)
TWO_BITS = np.pad(TWO_BITS, ((0, 0), (0, 2)))
SQUARE, BGR = RGB[:, :16], RGB[:, :16, ::-1]
WITH_ZERO = np.dstack([BGR, np.zeros((H, 16), np.uint8)])
PICTURES = {
    "four bits each": (bitmap(16, NIBBLES, FOUR[:3]), RGB),
    "four bits each, and alpha": (bitmap(16, NIBBLES, FOUR, header=56), ON_WHITE),
    "alpha by its own compression": (bitmap(16, NIBBLES, FOUR, compression=6), ON_WHITE),
    "one bit of alpha": (
        bitmap(16, ONE_BIT, (0x7C00, 0x3E0, 0x1F, 0x8000), header=56),
        np.where(ALPHA[..., None] > 200, FIVES, np.uint8(255)),
    ),
    "alpha of nothing but zeros": (
        bitmap(16, NIBBLES & np.uint16(0xFFF), FOUR, header=56, top=True), RGB,
    ),
    "ten bits each": (bitmap(32, TENS, (0x3FF << 20, 0x3FF << 10, 0x3FF)), RGB),
    "blue before red": (bitmap(32, SWAPPED, (0xFF, 0xFF00, 0xFF0000)), RGB),
    "two bits": (bitmap(2, TWO_BITS, palette=PALETTE, compression=0), COLOURS[INDEX]),
    "more colours than there are": (
        bitmap(8, INDEX, palette=PALETTE + bytes(4 * 252), colours=300, compression=0),
        COLOURS[INDEX],
    ),
    "icon without a mask": (icon(24, BGR), SQUARE),
    "icon of alpha zero": (
        icon(32, WITH_ZERO, MASKED), np.where(MASKED[..., None], np.uint8(255), SQUARE),
    ),
    "icon of alpha zero without a mask": (icon(32, WITH_ZERO), SQUARE),
}  # fmt: skip


@pytest.mark.parametrize("kind", PICTURES)
def test_pixels_are_those_that_browsers_show(kind):
    data, expected = PICTURES[kind]
    image = decode(data)
    assert not isinstance(image, BadRecord), image
    np.testing.assert_allclose(np.asarray(image), expected, atol=1)
    assert size_of(data) == (expected.shape[1], H)
    stored = prepare(data, max_pixels=10**6, max_aspect=20, min_side=8)
    np.testing.assert_array_equal(np.asarray(decode(stored)), np.asarray(image))


def test_what_is_sound_stays_as_it_is():
    seen = icon(32, WITH_ZERO | np.uint8(1), MASKED)
    for sound in (icon(24, BGR, MASKED), seen, b"", b"\0\0\1\0"):
        assert icon_with_masks(sound) == sound
    assert sound_bitmap(bitmap(8, INDEX, palette=PALETTE, colours=4, compression=0)) is None


@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_raise_nothing():
    random = np.random.default_rng(0)
    for data, _ in PICTURES.values():
        for _ in range(40):
            damaged = bytearray(data[: random.integers(10, len(data))])
            for place in random.integers(0, min(60, len(damaged)), 3):
                damaged[place] = random.integers(256)
            decode(bytes(damaged), max_pixels=10**6)
            sound_bitmap(bytes(damaged))
            icon_with_masks(bytes(damaged))


def test_more_pixels_than_memory_is_meant_for_are_not_unpacked(monkeypatch):
    data = bitmap(2, TWO_BITS, palette=PALETTE, compression=0)
    assert sound_bitmap(data) is not None
    monkeypatch.setattr("jaxclip.data.bitmaps._MAX_PIXELS", H * W - 1)
    assert sound_bitmap(data) is None
