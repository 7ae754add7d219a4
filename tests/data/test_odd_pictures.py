"""Valid pictures that were decoded to wrong colours in silence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxclip.data import image_backend, jpeg_header
from jaxclip.data.decode import decode
from jaxclip.data.file_kinds import kind_of
from jaxclip.data.image_op import Cut
from jaxclip.data.importer.images import prepare
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


def profile():
    """Of light itself: in place of sRGB's curves straight lines."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, 256, 0)
    for place in range(132, 132 + 12 * count, 12):
        if data[place + 1 : place + 4] == b"TRC":
            (start,) = struct.unpack_from(">I", data, place + 4)
            data[start : start + len(curve)] = curve
    return bytes(data)


def of_light(pixels):
    light = pixels / 255
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve)


def encoded(pixels, format, **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def of_profile(number, count, content):
    content = b"ICC_PROFILE\0" + bytes([number, count]) + content
    return b"\xff\xe2" + struct.pack(">H", len(content) + 2) + content


PROFILE = profile()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HALF = len(PROFILE) // 2
PARTS = [of_profile(1, 2, PROFILE[:HALF]), of_profile(2, 2, PROFILE[HALF:])]


@pytest.mark.parametrize(
    ("place", "parts", "is_whole"),
    [
        (b"\xff\xdb", [of_profile(1, 1, PROFILE)], True),
        (b"\xff\xda", [of_profile(1, 1, PROFILE)], True),  # behind the frame's header
        (b"\xff\xda", [PARTS[1], PARTS[0]], True),
        (b"\xff\xdb", [of_profile(1, 1, PROFILE), of_profile(1, 1, SRGB)], True),
        (b"\xff\xda", [PARTS[0]], False),
    ],
)
def test_where_the_profile_of_a_jpeg_stands(place, parts, is_whole):
    plain = encoded(RGB, "JPEG", quality=100, subsampling=0)
    before = np.asarray(decode(plain))
    at = plain.index(place)
    data = plain[:at] + b"".join(parts) + plain[at:]
    assert (jpeg_header.colour_profile(data) == PROFILE) is is_whole
    expected = of_light(before) if is_whole else before
    np.testing.assert_allclose(np.asarray(decode(data)), expected, atol=2)
    pytest.importorskip("simplejpeg")
    fast = image_backend.Fast().decode(data, lambda size: ())
    np.testing.assert_array_equal(fast.pixels, np.asarray(decode(data)))


def chunks(data):
    place, found = 8, []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        found.append(data[place : place + 12 + length])
        place += 12 + length
    return found


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


@pytest.mark.parametrize("split", [False, True])
def test_packed_pixels_of_a_png_with_a_wrong_checksum(split):
    head, body, end = chunks(encoded(RGB, "PNG"))
    packed = body[8:-8] + bytes(each ^ 0xFF for each in body[-8:-4])
    parts = [packed[:20], packed[20:]] if split else [packed]
    whole = b"\x89PNG\r\n\x1a\n" + head
    whole += b"".join(png_chunk(b"IDAT", part) for part in parts) + end
    np.testing.assert_array_equal(np.asarray(decode(whole)), RGB)
    cut = whole[:8] + head + png_chunk(b"IDAT", packed[:-30]) + end
    assert isinstance(decode(cut), BadRecord)


def test_pixels_of_an_animated_png_that_are_no_part_of_it():
    stream = io.BytesIO()
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    poster = Image.new("RGB", (W, H), "black")
    poster.save(stream, "PNG", save_all=True, default_image=True, append_images=frames)
    data = stream.getvalue()
    np.testing.assert_array_equal(np.asarray(decode(data)), RGB)
    stored = prepare(data, max_pixels=10**6, max_aspect=20, min_side=8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), RGB)
    damaged = data.replace(b"fdAT", b"fdAX")
    assert np.asarray(decode(damaged)).max() == 0  # those that are left


def test_fast_cuts_are_pillows_of_the_other_way_round():
    # Both cut values at 0 and 255 between rows and columns; Pillow begins with the columns.
    pytest.importorskip("simplejpeg")
    pixels = np.random.default_rng(0).integers(0, 2, (40, 60, 1), np.uint8) * np.full(
        3, 255, np.uint8
    )
    cut = Cut((3.5, 2.5, 50.25, 38.0), (24, 20), "bicubic")
    made = image_backend.Fast().cut(image_backend.Picture(pixels, (60, 40)), cut).astype(int)
    turned = Image.fromarray(pixels.swapaxes(0, 1))
    left, top, right, bottom = cut.box
    turned = turned.resize((20, 24), Image.Resampling.BICUBIC, box=(top, left, bottom, right))
    assert np.abs(made - np.asarray(turned).swapaxes(0, 1)).max() <= 1
