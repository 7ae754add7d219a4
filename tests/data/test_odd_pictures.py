"""Valid pictures that were decoded to wrong colours in silence."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from jaxclip.data.decode import decode
from jaxclip.data.file_kinds import kind_of
from jaxclip.data.record import BadRecord

H, W = 8, 16
ROW, COLUMN = np.mgrid[:H, :W]
RGB = np.stack([COLUMN, ROW, 15 - COLUMN], -1).astype(np.uint8) * 17
ALPHA = np.where(COLUMN < 8, 255, 136).astype(np.uint8)
ON_WHITE = np.rint(RGB * (ALPHA[..., None] / 255) + 255.0 - ALPHA[..., None])


def tiff(strips, bits, samples, photometric, planes=False, extra=()):
    """An uncompressed little-endian TIFF of a strip for all, or for each plane."""
    first = 8 + 2 + 12 * 12 + 4
    places = np.cumsum([first + 12 * 8, *map(len, strips)])[:-1].tolist()
    tags = {
        256: [W], 257: [H], 258: [bits] * samples, 259: [1], 262: [photometric], 273: places,
        277: [samples], 278: [H], 279: list(map(len, strips)), 284: [2 if planes else 1],
        338: list(extra), 339: [1] * samples,
    }  # fmt: skip
    tags = {tag: values for tag, values in tags.items() if values}
    entries, far = b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, far = struct.pack("<I", first + len(far)), far + packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(first, b"\0") + far.ljust(12 * 8, b"\0") + b"".join(strips)


def planes_of_16_bits(pixels, photometric, extra=()):
    strips = [(plane.astype("<u2") * 257).tobytes() for plane in np.moveaxis(pixels, 2, 0)]
    return tiff(strips, 16, pixels.shape[2], photometric, planes=True, extra=extra)


def test_planes_of_16_bits_with_alpha():
    image = decode(planes_of_16_bits(np.dstack([RGB, ALPHA]), 2, extra=[2]))
    np.testing.assert_allclose(np.asarray(image), ON_WHITE, atol=1)


def test_planes_of_16_bits_of_other_colours_are_refused():
    found = decode(planes_of_16_bits(np.dstack([RGB, ALPHA]), 5))
    assert isinstance(found, BadRecord) and "planes of 16 bits in CMYK" in found.detail


def test_greys_that_alpha_is_multiplied_into():
    grey = np.rint(RGB[..., 0] * (ALPHA / 255)).astype(np.uint8)
    image = np.asarray(decode(tiff([np.dstack([grey, ALPHA]).tobytes()], 8, 2, 1, extra=[1])))
    np.testing.assert_allclose(image[..., 0], ON_WHITE[..., 0], atol=1)


def test_greys_of_12_bits():
    grey = COLUMN * 273  # up to 4095
    pairs = grey.reshape(-1, 2)
    high, middle, low = pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]
    packed = np.stack([high, middle, low & 255], -1).astype(np.uint8).tobytes()
    image = np.asarray(decode(tiff([packed], 12, 1, 1)))
    np.testing.assert_allclose(image[..., 0], COLUMN * 17, atol=1)


@pytest.mark.parametrize("count", [1, 2])
def test_around_the_first_frame_of_a_webp_is_nothing(count):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "WEBP", lossless=True)
    size = struct.pack("<I", W - 1)[:3] + struct.pack("<I", H - 1)[:3]
    frame = bytes([2, 0, 0, 1, 0, 0]) + size + bytes([100, 0, 0, 0]) + stream.getvalue()[12:]
    chunks = [
        (b"VP8X", bytes([2, 0, 0, 0]) + bytes([23, 0, 0, 15, 0, 0])),
        (b"ANIM", bytes([0, 0, 255, 255, 0, 0])),
        *[(b"ANMF", frame)] * count,
    ]
    body = b"WEBP"
    for name, data in chunks:
        body += name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    image = np.asarray(decode(b"RIFF" + struct.pack("<I", len(body)) + body))
    expected = np.full((16, 24, 3), 255, np.uint8)
    expected[2 : 2 + H, 4 : 4 + W] = RGB
    np.testing.assert_array_equal(image, expected)


def test_a_big_endian_bigtiff_is_called_so():
    assert kind_of(b"MM\0+\0\x08\0\0").startswith("a big-endian BigTIFF")
