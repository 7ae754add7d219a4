"""Encoded image bytes to pixels, with the reason where that is impossible.

Pillow does the decoding: it knows palettes, transparency, CMYK, 16-bit grey, EXIF orientation and
WebP, releases the interpreter lock while it works, and is as fast as TensorFlow's decoders.
"""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxclip.data.record import BadRecord

# Formats that may stand in a data set. Pillow knows many more, which have no business there and
# whose rarely used decoders are where the security holes are.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO")

_ORIENTATION = 0x0112

DEFAULT_MAX_PIXELS = 100_000_000
DEFAULT_MAX_ASPECT = 50.0

# The size limit is checked here, before a pixel is decoded, and reported as absurd_size.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_aspect: float = DEFAULT_MAX_ASPECT,
    min_side: int = 1,
    draft: int = 0,
) -> Image.Image | BadRecord:
    """Decode an image to RGB.

    Transparent pixels are laid on white; the orientation of the EXIF data is applied; of animations
    the first frame is taken.

    Args:
      data: encoded bytes in one of :data:`FORMATS`.
      max_pixels: more are absurd.
      max_aspect: so is a longer side that is more than this many times the shorter.
      min_side: and a shorter side below this.
      draft: decode JPEGs at a half, quarter or eighth of their size as long as both sides have this
        many pixels; 0 = never.

    Returns:
      An image of mode "RGB", fully loaded; a :class:`BadRecord` with reason
      ``zero_bytes``, ``undecodable``, ``truncated`` or ``absurd_size``.
    """
    if not data:
        return BadRecord("zero_bytes")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        return BadRecord("absurd_size", str(error))
    except UnidentifiedImageError:
        return BadRecord("undecodable", f"{kind_of(data)}; read are {', '.join(_formats())}")
    except Exception as error:  # Pillow's parsers raise almost anything on hostile bytes
        return BadRecord("undecodable", f"{type(error).__name__}: {error}")
    width, height = image.size
    if not is_sane(width, height, max_pixels, max_aspect, min_side):
        return BadRecord("absurd_size", f"{width}x{height} pixels")
    try:
        if draft:
            image.draft(image.mode, (draft, draft))
        image.load()
        image = ImageOps.exif_transpose(image) if image.format != "PNG" else image
        return to_rgb(image)
    except Exception as error:
        return BadRecord(_load_failure(error), f"{type(error).__name__}: {error}")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with; AVIF is not in each."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


# How files begin that are met in the place of pictures, and what to do about them.
_OTHERS = {
    b"<error": "an error of a store, not the picture: the download failed",
    b"{": "JSON, perhaps an error of a server: the download failed",
    b"404": "an error of a server, not the picture: the download failed",
    b"<html": "a page of the web, not the picture: the download failed",
    b"<!doctype html": "a page of the web, not the picture: the download failed",
    b"<?xml": "XML; if it is an SVG drawing, make a PNG of it first",
    b"\x00\x00\x00\x0cjp": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cjxl": "JPEG XL",
    b"8bps": "a Photoshop file",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript drawing",
    b"\x1ae\xdf\xa3": "a film (WebM or Matroska)",
    b"\x93numpy": "an array of NumPy",
    b"\x89hdf": "an HDF5 file",
    b"v/1\x01": "OpenEXR",
    b"\x00\x05\x16\x07": "what macOS leaves beside a file (._NAME), not the picture",
    b"rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"/9j/": "a JPEG written as base64; decode it first",
    b"ivborw0kgg": "a PNG written as base64; decode it first",
    b"dds ": "a DirectDraw surface",
    b"\x1f\x8b": "gzip-compressed",
    b"pk\x03\x04": "a ZIP archive",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
}


def kind_of(data: bytes) -> str:
    """What bytes seem to be that are no picture we read, for a message."""
    begin = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data and not begin.strip(b"\0"):
        return "nothing but zeros where it should begin: the copy was cut off"
    if begin[4:8] == b"ftyp":
        is_heic = begin[8:11] in (b"hei", b"hev", b"mif", b"msf")
        return (
            "HEIC; convert it to JPEG first" if is_heic else "a film (MP4, QuickTime) or raw data"
        )
    if begin.startswith(b"<") and b"<svg" in begin:
        return "an SVG drawing; make a PNG of it first"
    for magic, kind in _OTHERS.items():
        if begin.startswith(magic):
            return kind
    return f"no known kind of picture (it begins with {data[:12]!r})"


def is_sane(
    width: int,
    height: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_aspect: float = DEFAULT_MAX_ASPECT,
    min_side: int = 1,
) -> bool:
    """Whether a picture of this size is worth decoding, by the limits of :func:`decode`."""
    small, large = sorted((width, height))
    return width * height <= max_pixels and small >= min_side and large <= max_aspect * small


def is_turned(data: bytes, end: int) -> bool:
    """Whether the EXIF data of a JPEG say that it is to be turned or mirrored, or are damaged.

    Args:
      data: of the file.
      end: EXIF data are looked for among so many bytes.
    """
    if data.find(b"Exif\x00\x00", 0, end) < 0:
        return False
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG",)).getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # as in decode
        return True


def _load_failure(error: Exception) -> str:
    text = str(error).lower()
    endings = ("truncated", "unexpected end", "not enough image data", "buffer is not large enough")
    return "truncated" if any(ending in text for ending in endings) else "undecodable"


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _depth8(image).convert("RGB")


def _depth8(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits; Pillow's own conversion would clip at 255."""
    if image.mode == "F" or (image.mode == "I" and not _is_16_bit(image)):
        # Nothing says which value is white: any choice would be a guess.
        raise ValueError("samples of 32 bits without a known range; make 8 or 16 bits of them")
    if image.mode.startswith("I"):
        return image.point(lambda value: value * (1 / 257)).convert("L")
    return image


def _is_16_bit(image: Image.Image) -> bool:
    samples = np.asarray(image)
    return bool(samples.min() >= 0 and samples.max() <= 65535)
