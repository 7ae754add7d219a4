"""Bytes to pixels, and what is wrong with bytes that are no picture."""

import io
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from jaxclip.data.decode import decode
from jaxclip.data.record import REASONS, BadRecord


def test_rgb_is_what_was_encoded(toys):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for format in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(np.asarray(decode(toys.encode(pixels, format))), pixels)
    lossless = toys.encode(pixels, "WEBP", lossless=True)
    np.testing.assert_array_equal(np.asarray(decode(lossless)), pixels)
    # JPEG loses something, little at this quality.
    smooth = np.linspace(0, 255, 16 * 16 * 3).astype(np.uint8).reshape(16, 16, 3)
    decoded = np.asarray(decode(toys.encode(smooth, "JPEG", quality=98, subsampling=0)))
    assert np.abs(decoded.astype(int) - smooth).max() < 12


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
    out = np.asarray(decode(encoded(image)))[0]
    assert out.tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 9, 9, 9])
    palette.putdata([0, 1])
    out = np.asarray(decode(encoded(palette, transparency=1)))[0]
    assert out.tolist() == [[1, 2, 3], [255, 255, 255]]
    gray = Image.new("LA", (1, 1), (0, 0))
    assert np.asarray(decode(encoded(gray)))[0].tolist() == [[255, 255, 255]]


def test_other_modes():
    assert np.asarray(decode(encoded(Image.new("L", (1, 1), 77))))[0].tolist() == [[77] * 3]
    assert np.asarray(decode(encoded(Image.new("1", (1, 1), 1))))[0].tolist() == [[255] * 3]
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    assert np.asarray(decode(encoded(deep)))[0, :, 0].tolist() == [0, 100, 255]
    cmyk = decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert np.asarray(cmyk).min() > 250


def test_orientation_of_a_photograph_is_applied():
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to look at it
    out = np.asarray(decode(encoded(image, "JPEG", exif=exif)))
    assert out.shape == (16, 8, 3)
    assert out[:7].min() > 200 and out[9:].max() < 50


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    pixels = struct.pack(">I", 1000) + b"IDAT"  # Pillow looks no further before it knows the size
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + crc + pixels


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda png, jpeg: b"", "zero_bytes"),
        (lambda png, jpeg: b"hello, I am no picture", "undecodable"),
        (lambda png, jpeg: b"\x89PNG\r\n\x1a\n", "undecodable"),
        (lambda png, jpeg: png[: len(png) // 2], "truncated"),
        (lambda png, jpeg: jpeg[: len(jpeg) // 2], "truncated"),
        (lambda png, jpeg: png_header(100_000, 100_000), "absurd_size"),
        (lambda png, jpeg: png_header(12_000, 12_000), "absurd_size"),
        (lambda png, jpeg: png_header(5000, 3), "absurd_size"),
        (lambda png, jpeg: png_header(3, 5000), "absurd_size"),
        # Sound but of a format that has no business in a data set.
        (lambda png, jpeg: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "undecodable"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_reasons(make, reason, toys):
    png, jpeg = toys.picture(0, 40, 40), toys.picture(0, 40, 40, "JPEG")
    bad = decode(make(png, jpeg))
    assert isinstance(bad, BadRecord) and bad.reason == reason
    assert reason in REASONS


def test_limits_can_be_set(toys):
    data = toys.picture(0, 10, 30)
    assert isinstance(decode(data), Image.Image)
    assert decode(data, max_pixels=299).reason == "absurd_size"
    assert decode(data, max_aspect=2.9).reason == "absurd_size"
    assert decode(data, min_side=11).reason == "absurd_size"
    assert "30x10" in decode(data, min_side=11).detail
    assert isinstance(decode(data, max_pixels=300, max_aspect=3, min_side=10), Image.Image)


@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_a_reason(data):
    result = decode(data)
    assert isinstance(result, Image.Image) or result.reason in REASONS


@hypothesis.given(
    position=st.integers(0, 400), value=st.integers(0, 255), format=st.sampled_from(["PNG", "JPEG"])
)
@hypothesis.settings(
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,  # as in tests/conftest.py, whose list this one replaces
    ]
)
def test_a_damaged_byte_gives_an_image_or_a_reason(position, value, format, toys):
    data = bytearray(toys.picture(1, 8, 8, format))
    data[position % len(data)] = value
    result = decode(bytes(data))
    assert isinstance(result, Image.Image) or result.reason in REASONS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\n<!DOCTYPE html><html>404", "a page of the web, not the picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "make a PNG of it first"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC; convert it to JPEG first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"\1\2\3 nothing known", r"it begins with b'\x01\x02\x03"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data, said):
    found = decode(data)
    assert found.reason == "undecodable" and said in found.detail and "AVIF" in found.detail


def test_samples_of_32_bits_are_read_only_where_white_is_known():
    sixteen = Image.fromarray(np.array([[0, 257, 65535]], np.int32))
    assert np.asarray(decode(encoded(sixteen, "TIFF")))[0, :, 0].tolist() == [0, 1, 255]
    for pixels in (
        np.array([[0.0, 0.5]], np.float32),
        np.array([[0, 2**30]], np.int32),
        np.array([[-9, 60000]], np.int32),
    ):
        found = decode(encoded(Image.fromarray(pixels), "TIFF"))
        assert found.reason == "undecodable" and "without a known range" in found.detail
