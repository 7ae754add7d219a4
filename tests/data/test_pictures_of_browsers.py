"""Pictures that browsers show and Pillow reads otherwise, or not at all."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxclip.data import image_backend
from jaxclip.data.decode import decode, size_of
from jaxclip.data.importer.images import prepare
from jaxclip.data.record import BadRecord

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [250, 250, 40]], np.uint8)
INDEX = np.repeat(np.repeat([[0, 1, 2], [3, 3, 3]], 8, 0), 8, 1).astype(np.uint8)
RGB = COLOURS[INDEX]  # [16, 24, 3]
GREY = np.ascontiguousarray(RGB[..., 1])
# Within these sRGB looks paler than Display P3.
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def encoded(pixels, format, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(pixels=RGB, **options):
    return encoded(pixels, "JPEG", quality=100, subsampling=0, **options)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, bits, colour, before=b"", behind=b""):
    """A PNG of rows of bytes, with chunks before and behind the pixels."""
    header = struct.pack(">IIBBBBB", 24, 16, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + behind
        + chunk(b"IEND", b"")
    )  # fmt: skip


def wide(samples):
    return [row.astype(">u2").tobytes() for row in samples.astype(np.uint16) * 257]


def narrow(samples, bits):
    """Rows of samples of 2 or 4 bits."""
    places = np.arange(8 // bits)[::-1] * bits
    groups = samples.reshape(16, -1, 8 // bits).astype(int)
    return [bytes((group << places).sum(-1).tolist()) for group in groups]


def exif(orientation=6):
    data = Image.Exif()
    data[0x112] = orientation
    return data.tobytes()


def gif(place, index):
    """A GIF of 24 x 16 whose only frame is somewhere in it."""
    codes = "".join(f"{code:03b}"[::-1] for each in index.ravel() for code in (4, int(each)))
    codes += f"{5:03b}"[::-1]
    data = bytes(int(codes[i : i + 8][::-1], 2) for i in range(0, len(codes), 8))
    blocks = b"".join(
        bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)
    )
    frame = struct.pack("<HHHHB", *place, index.shape[1], index.shape[0], 0)
    head = b"GIF89a" + struct.pack("<HHBBB", 24, 16, 0xF1, 0, 0) + COLOURS.tobytes()
    return head + b"\x2c" + frame + b"\x02" + blocks + b"\0;"


def tiff(samples, *, big=False, planes=False, photometric=2):
    """An uncompressed TIFF of 16-bit samples."""
    end = ">" if big else "<"
    samples = (samples.astype(np.uint16) * 257).astype(f"{end}u2").reshape(16, 24, -1)
    count = samples.shape[2]
    parts = np.moveaxis(samples, 2, 0) if planes else [samples]
    parts = [np.ascontiguousarray(part).tobytes() for part in parts]
    tags = {
        256: 24, 257: 16, 258: [16] * count, 259: 1, 262: photometric, 273: None, 277: count,
        278: 16, 279: [len(part) for part in parts], 284: 2 if planes else 1,
    }  # fmt: skip
    far = 8 + 2 + 12 * len(tags) + 4
    first = far + sum(4 * len(v) for v in (tags[258], tags[279], parts) if len(v) > 1)
    tags[273] = np.cumsum([first, *tags[279]])[:-1].tolist()
    entries, values = b"", b""
    for tag, value in tags.items():
        value = value if isinstance(value, list) else [value]
        packed = struct.pack(f"{end}{len(value)}I", *value)
        if len(value) > 1:
            packed, values = struct.pack(f"{end}I", far + len(values)), values + packed
        entries += struct.pack(f"{end}HHI", tag, 4, len(value)) + packed
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{end}IH", 8, len(tags))
    return head + entries + bytes(4) + values + b"".join(parts)


def profile(primaries=None, gamma=2.2):
    """A colour profile of three primaries and a gamma; without primaries of greys."""

    def numbers(values):
        return b"".join(struct.pack(">i", round(65536 * value)) for value in values)

    def place(values):
        return b"XYZ \0\0\0\0" + numbers(values)

    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(256 * gamma), 0)
    text = b"text\0\0\0\0x\0\0\0"
    tags = {b"cprt": text, b"wtpt": place(white)}
    tags |= {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(80)}
    for name, primary in zip("rgb", primaries or (), strict=bool(primaries)):
        tags |= {f"{name}XYZ".encode(): place(primary), f"{name}TRC".encode(): curve}
    if not primaries:
        tags[b"kTRC"] = curve
    table, body, first = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", first + len(body), len(data))
        body += data
    head = (
        struct.pack(">I4sI", first + len(body), b"", 0x02400000)
        + b"mntr"
        + (b"RGB " if primaries else b"GRAY")
    )
    head += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + numbers(white)
    return head + bytes(128 - len(head)) + table + body


def in_srgb(pixels, primaries=SRGB, gamma=563 / 256):
    linear = (pixels / 255) ** gamma @ np.array(primaries) @ np.linalg.inv(np.array(SRGB))
    linear = np.clip(linear, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * curve).astype(np.uint8)


def grey(samples):
    return np.repeat(samples[..., None], 3, 2)


def but_white(pixels, where):
    return np.where(where[..., None], np.uint8(255), pixels)


def number_chunk(kind, *numbers):
    return chunk(kind, struct.pack(f">{len(numbers)}I", *numbers))


def code_points(*values):
    return chunk(b"cICP", bytes(values))


def avif(primaries, transfer, **options):
    """An AVIF that says by its code points what its colours are."""
    data = encoded(RGB, "AVIF", quality=100, subsampling="4:4:4", **options)
    place = data.find(b"colrnclx") + 8
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


def as_seen_in_chromium(levels):
    """Greys 0, 51, …, 255 as Chromium 156 shows them, in its screenshots."""
    return np.repeat(np.repeat(np.array(levels, np.uint8), 4)[None], 16, 0)


TURNED = np.ascontiguousarray(np.rot90(RGB, -1))
ROWS = RGB.reshape(16, -1)
SMALL = INDEX[4:12, 4:20]
WITH_FRAME = np.full_like(RGB, 255)
WITH_FRAME[4:12, 4:20] = RGB[4:12, 4:20]
DARK = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24).astype(np.uint8) // 2
LIGHT = in_srgb(grey(GREY), gamma=1.0)
ON_WHITE = np.rint(LIGHT * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
SEEN_THROUGH = np.stack([GREY, np.full_like(GREY, 128)], -1).reshape(16, -1)
OF_LIGHT = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(gamma=1.0)))
OF_P3 = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(P3)))
P3_POINTS = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
LEVELS = as_seen_in_chromium(range(0, 256, 51))
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LONG_TEXT = b"a\0\0" + zlib.compress(bytes(2**21))
CURSOR = struct.pack("<HHHBBHHHII", 0, 2, 1, 24, 16, 0, 3, 5, len(encoded(RGB, "PNG")), 22)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"/></x:xmpmeta>'
)
PICTURES = {
    "PNG with EXIF": (png(ROWS, 8, 2, chunk(b"eXIf", exif()[6:])), TURNED, 0),
    "PNG with EXIF behind": (png(ROWS, 8, 2, b"", chunk(b"eXIf", exif()[6:])), TURNED, 0),
    "WebP with EXIF": (encoded(RGB, "WEBP", lossless=True, exif=exif()), TURNED, 0),
    "JPEG with EXIF": (jpeg(exif=exif()), TURNED, 12),
    "grey JPEG, profile of colours": (
        jpeg(GREY, icc_profile=profile(P3)), in_srgb(grey(GREY)), 8,
    ),
    "XMP does not turn": (jpeg(xmp=XMP), RGB, 12),
    "16-bit grey, one seen through": (
        png(wide(GREY), 16, 0, chunk(b"tRNS", struct.pack(">H", 200 * 257))),
        but_white(grey(GREY), GREY == 200),
        0,
    ),
    **{
        f"{bits}-bit grey, one seen through": (
            png(narrow(INDEX, bits), bits, 0, chunk(b"tRNS", b"\0\1")),
            but_white(grey(INDEX * np.uint8(255 // (2**bits - 1))), INDEX == 1),
            0,
        )
        for bits in (2, 4)
    },
    "16-bit colours, one seen through": (
        png(wide(ROWS), 16, 2, chunk(b"tRNS", wide(COLOURS[:1])[0])),
        but_white(RGB, INDEX == 0),
        0,
    ),
    "a colour seen through, in another colour space": (
        encoded(RGB, "PNG", icc_profile=profile(P3), transparency=tuple(COLOURS[0].tolist())),
        but_white(in_srgb(RGB, P3), INDEX == 0),
        2,
    ),
    "frame within a GIF": (gif((4, 4), SMALL), WITH_FRAME, 0),
    "whole GIF": (gif((0, 0), INDEX), RGB, 0),
    "cursor": (CURSOR + encoded(RGB, "PNG"), RGB, 0),
    "big-endian grey TIFF": (tiff(GREY, big=True, photometric=1), grey(GREY), 0),
    "grey TIFF, 0 is white": (tiff(255 - GREY, photometric=0), grey(GREY), 0),
    "planes": (tiff(RGB, planes=True), RGB, 0),
    "planes, big-endian": (tiff(RGB, planes=True, big=True), RGB, 0),
    "JPEG without its end": (jpeg()[:-2], RGB, 12),
    "JPEG with half its end": (jpeg(progressive=True)[:-1], RGB, 12),
    "wrong checksum of a text": (png(ROWS, 8, 2, chunk(b"tEXt", b"a\0b")[:-1] + b"?"), RGB, 0),
    "very long text": (png(ROWS, 8, 2, chunk(b"zTXt", LONG_TEXT)), RGB, 0),
    "very long text behind": (png(ROWS, 8, 2, b"", chunk(b"zTXt", LONG_TEXT)), RGB, 0),
    "PNG of another colour space": (
        encoded(RGB, "PNG", icc_profile=profile(P3)), in_srgb(RGB, P3), 2,
    ),
    "JPEG of another colour space": (jpeg(icc_profile=profile(P3)), in_srgb(RGB, P3), 14),
    "profile of sRGB": (encoded(RGB, "PNG", icc_profile=SRGB_PROFILE), RGB, 0),
    "greys of light with alpha": (png(SEEN_THROUGH, 8, 4, OF_LIGHT), ON_WHITE, 2),
    "16-bit greys of light with alpha": (png(wide(SEEN_THROUGH), 16, 4, OF_LIGHT), ON_WHITE, 2),
    "dark greys of light": (png(DARK, 8, 0, OF_LIGHT), in_srgb(grey(DARK), gamma=1.0), 1),
    "16-bit greys of light": (png(wide(GREY), 16, 0, OF_LIGHT), LIGHT, 1),
    "greys, profile of colours": (png(GREY, 8, 0, OF_P3), in_srgb(grey(GREY)), 2),
    "colours, profile of greys": (png(ROWS, 8, 2, OF_LIGHT), RGB, 0),
    "gAMA": (png(ROWS, 8, 2, number_chunk(b"gAMA", 100000)), in_srgb(RGB, gamma=1.0), 1),
    "gAMA of two bytes": (png(ROWS, 8, 2, chunk(b"gAMA", b"\1\0")), RGB, 0),
    "profile that is packed in no known way": (png(ROWS, 8, 2, chunk(b"iCCP", b"x\0\7\7")), RGB, 0),
    "gAMA of greys": (png(wide(GREY), 16, 0, number_chunk(b"gAMA", 100000)), LIGHT, 1),
    "gAMA that is about sRGB's": (png(ROWS, 8, 2, number_chunk(b"gAMA", 45455)), RGB, 0),
    "no gAMA": (png(ROWS, 8, 2, number_chunk(b"gAMA", 0)), RGB, 0),
    "gAMA and cHRM": (
        png(ROWS, 8, 2, number_chunk(b"cHRM", *P3_POINTS) + number_chunk(b"gAMA", 45455)),
        in_srgb(RGB, P3),
        2,
    ),
    "cHRM of nothing": (
        png(ROWS, 8, 2, number_chunk(b"cHRM", *[0] * 8) + number_chunk(b"gAMA", 100000)),
        in_srgb(RGB, gamma=1.0),
        1,
    ),
    "cHRM alone": (png(ROWS, 8, 2, number_chunk(b"cHRM", *P3_POINTS)), RGB, 0),
    "sRGB before gAMA": (
        png(ROWS, 8, 2, number_chunk(b"gAMA", 100000) + chunk(b"sRGB", b"\0")), RGB, 0,
    ),
    "a profile before gAMA": (
        png(ROWS, 8, 2, number_chunk(b"gAMA", 100000) + OF_P3), in_srgb(RGB, P3), 2,
    ),
    "cICP before a profile": (
        png(ROWS, 8, 2, OF_P3 + code_points(1, 8, 0, 1)), in_srgb(RGB, gamma=1.0), 1,
    ),
    "cICP of sRGB before a profile": (png(ROWS, 8, 2, OF_P3 + code_points(1, 13, 0, 1)), RGB, 0),
    "cICP of a narrow range": (png(ROWS, 8, 2, code_points(1, 8, 0, 0)), RGB, 0),
    "cICP of palettes": (
        png(INDEX, 8, 3, code_points(1, 8, 0, 1) + chunk(b"PLTE", COLOURS.tobytes())),
        in_srgb(RGB, gamma=1.0),
        1,
    ),
    "cICP with alpha": (png(SEEN_THROUGH, 8, 4, code_points(1, 8, 0, 1)), ON_WHITE, 2),
    "cICP of PQ": (
        png(LEVELS, 8, 0, code_points(9, 16, 0, 1)),
        grey(as_seen_in_chromium([0, 18, 80, 200, 255, 255])),
        1,
    ),
    "cICP of HLG": (
        png(LEVELS, 8, 0, code_points(9, 18, 0, 1)),
        grey(as_seen_in_chromium([0, 31, 76, 126, 207, 255])),
        1,
    ),
    "AVIF of light": (avif(1, 8), in_srgb(RGB, gamma=1.0), 6),
    "AVIF of television": (avif(1, 1), RGB, 3),
    "AVIF, a profile before code points": (
        avif(1, 8, icc_profile=profile(P3)), in_srgb(RGB, P3), 4,
    ),
    "damaged profile": (encoded(RGB, "PNG", icc_profile=b"junk"), RGB, 0),
    "enormous profile": (jpeg(icc_profile=profile(P3) + bytes(5 << 20)), RGB, 12),
}  # fmt: skip


# Primaries and transfer function, and what Chromium 156 shows of four colours.
SHOWN = {
    (9, 16): [[255, 0, 0], [0, 110, 222], [147, 197, 0], [0, 18, 255]],
    (9, 18): [[230, 29, 0], [0, 95, 129], [110, 123, 0], [48, 66, 185]],
    (12, 16): [[255, 0, 0], [0, 108, 222], [155, 195, 0], [32, 32, 255]],
    (12, 18): [[202, 61, 0], [23, 93, 129], [109, 121, 0], [69, 69, 185]],
}


@pytest.fixture(scope="module")
def backends():
    names = ["pillow"]
    if pytest.importorskip("simplejpeg") and pytest.importorskip("cykooz_resizer"):
        names.append("fast")
    return [image_backend.BACKENDS.get(name)() for name in names]


@pytest.mark.parametrize("kind", PICTURES)
def test_pixels_are_those_that_browsers_show(kind, backends):
    data, expected, tolerance = PICTURES[kind]
    image = decode(data)
    assert isinstance(image, Image.Image), image
    pixels = np.asarray(image)
    assert pixels.shape == expected.shape
    assert size_of(data) == (expected.shape[1], expected.shape[0])
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    for backend in backends:
        np.testing.assert_array_equal(backend.decode(data, lambda size: ()).pixels, pixels)
    # What an import keeps of it is the same picture, and one that Pillow alone can read.
    stored = prepare(data, max_pixels=10**6, max_aspect=20, min_side=8)
    again = np.asarray(decode(stored))
    assert np.abs(again.astype(int) - pixels).max() <= (8 if stored[:2] == b"\xff\xd8" else 0)
    Image.open(io.BytesIO(stored)).load()


def test_light_of_high_dynamic_range_is_that_of_chromium():
    colours = np.array([[200, 90, 40], [60, 120, 160], [140, 150, 20], [90, 90, 200]], np.uint8)
    pixels = colours[INDEX].reshape(16, -1)
    for code, shown in SHOWN.items():
        image = np.asarray(decode(png(pixels, 8, 2, code_points(*code, 0, 1))))
        assert np.abs(image[[0, 0, 0, 8], [0, 8, 16, 0]].astype(int) - shown).max() <= 2


@pytest.mark.parametrize("transfer", [8, 13, 16, 18])
def test_colours_that_no_light_has_are_shown_all_the_same(transfer):
    with np.errstate(all="raise"):
        data = png(ROWS, 8, 2, code_points(10, transfer, 0, 1))  # XYZ's own
        assert isinstance(decode(data), Image.Image)


def test_a_jpeg_that_lacks_more_than_its_end_is_cut():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for options in ({}, {"progressive": True}):
        data = jpeg(noise, **options)
        for cut in (3, 10, len(data) // 2):
            assert decode(data[:-cut]).reason == "truncated"
        assert isinstance(decode(data[:-2]), Image.Image)


def test_a_colour_profile_is_no_part_of_what_is_encoded_anew():
    alpha = np.dstack([RGB, np.full((16, 24), 255, np.uint8)])
    data = encoded(alpha, "PNG", icc_profile=profile(P3))
    stored = prepare(data, max_pixels=10**6, max_aspect=20, min_side=8)
    assert Image.open(io.BytesIO(stored)).info.get("icc_profile") is None
    np.testing.assert_array_equal(np.asarray(decode(stored)), np.asarray(decode(data)))


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_icon_has_the_size_of_the_picture_in_it():
    inner = encoded(np.zeros((10, 3000, 3), np.uint8), "PNG")
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22)
    assert decode(head + inner) == BadRecord("absurd_size", "3000x10 pixels")


def lossless():
    data = bytearray(jpeg())
    data[data.find(b"\xff\xc0") + 1] = 0xC3
    return bytes(data)


def twelve_bits():
    data = bytearray(jpeg())
    data[data.find(b"\xff\xc0") + 4] = 12
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (lossless(), "undecodable", "a lossless JPEG; convert it"),
        (twelve_bits(), "undecodable", "JPEG that is damaged or of a kind that is not read: cannot "
         "handle 12-bit"),
        (tiff(GREY, big=True, photometric=0), "undecodable", "TIFF that is .* not read: unknown"),
        (b"\n" + jpeg(), "undecodable", "a JPEG behind 1 bytes of something else"),
        (png([], 8, 2).replace(struct.pack(">I", 16), bytes(4), 1), "absurd_size", "height is 0"),
        (encoded(RGB, "WEBP")[:-10], "truncated", ""),
        (jpeg()[:30], "truncated", ""),
        (encoded(RGB, "TGA"), "undecodable", "TGA; convert it to PNG"),
        (encoded(RGB, "PCX"), "undecodable", "PCX; convert it to PNG"),
        (b"\xff\x4f\xff\x51\0\x2f", "undecodable", "JPEG 2000; convert it"),
        ("<?xml version='1.0'?><svg/>".encode("utf-16"), "undecodable", "an SVG drawing; make"),
        (b"P7\nWIDTH 24\n", "undecodable", "PAM; convert it"),
        (b"hello there", "undecodable", "text .it begins with b'hello"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_called_what_it_is(data, reason, said):
    found = decode(data)
    assert isinstance(found, BadRecord) and found.reason == reason
    assert re.search(said, found.detail) and "\n" not in found.detail
