"""Encoded image bytes to pixels, with the reason where that is impossible.

Pillow does the decoding: it knows palettes, transparency, CMYK, 16-bit grey and WebP, releases the
interpreter lock while it works, and is as fast as TensorFlow's decoders. Where browsers show
something else than Pillow, they are right.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxclip.data import bitmaps, coded_colour, colour, jpeg_header, mending
from jaxclip.data.file_kinds import jpeg_process, kind_of
from jaxclip.data.record import BadRecord

# Formats that may stand in a data set. Pillow knows many more, which have no business there and
# whose rarely used decoders are where the security holes are.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "ICO")

_ORIENTATION = 0x0112
# What is to be done by the orientation in EXIF data; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = (5, 6, 7, 8)
# Grey PNGs of fewer bits: Pillow scales the samples to 8 bits, but not the transparent one.
_SCALES = {"L;2": 85, "L;4": 17}
# TIFF's tag that says what the samples mean, and its value for "0 is white".
_PHOTOMETRIC, _WHITE_IS_0 = 262, 0

# Formats whose colours may be said by numbers.
_CODES = {"PNG": coded_colour.of_png, "AVIF": coded_colour.of_avif}

DEFAULT_MAX_PIXELS = 100_000_000
DEFAULT_MAX_ASPECT = 50.0

# The size limit is checked here, before a pixel is decoded, and reported as absurd_size.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# What is odd about a picture that is read all the same is no line of a log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


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
    found = decode_mended(
        data, max_pixels=max_pixels, max_aspect=max_aspect, min_side=min_side, draft=draft
    )
    return found if isinstance(found, BadRecord) else found.image


class Decoded(NamedTuple):
    """A picture and what it was decoded from.

    Attributes:
      image: of mode "RGB".
      data: the encoded bytes; where those given are damaged in a way that browsers don't mind,
        sound ones of the same picture.
    """

    image: Image.Image
    data: bytes


def decode_mended(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_aspect: float = DEFAULT_MAX_ASPECT,
    min_side: int = 1,
    draft: int = 0,
) -> Decoded | BadRecord:
    """As :func:`decode`, and the bytes that other readers decode to the same picture."""
    opened = _opened(data)
    if isinstance(opened, BadRecord):
        return opened
    image, data = opened
    width, height = image.size
    if not is_sane(width, height, max_pixels, max_aspect, min_side):
        return BadRecord("absurd_size", f"{width}x{height} pixels")
    try:
        if draft:
            image.draft(image.mode, (draft, draft))
        loaded = _loaded(image, data)
    except Exception as error:
        reason = _load_failure(error, data)
        sound = mending.jpeg_with_end(data) if reason == "truncated" else _mended(data)
        if sound is not None:
            return decode_mended(
                sound, max_pixels=max_pixels, max_aspect=max_aspect, min_side=min_side, draft=draft
            )
        how = jpeg_process(data)
        if image.format == "TIFF" and "decoder error" in str(error):
            how = f"a TIFF compressed as {image.info.get('compression')}, which is not read: "
        return BadRecord(reason, f"{how}{type(error).__name__}: {error}")
    # An icon's first bytes may say another size than the picture in it has.
    if image.format == "ICO" and not is_sane(*loaded.size, max_pixels, max_aspect, min_side):
        return BadRecord("absurd_size", f"{loaded.width}x{loaded.height} pixels")
    return Decoded(loaded, data)


def size_of(data: bytes) -> tuple[int, int] | BadRecord:
    """(width, height) of a picture as it is displayed, by its header; or why it has none."""
    opened = _opened(data)
    if isinstance(opened, BadRecord):
        return opened
    image, data = opened
    width, height = image.size
    if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
        try:
            image.load()  # it stands behind the pixels
        except Exception as error:  # as in decode
            return BadRecord(_load_failure(error, data), f"{type(error).__name__}: {error}")
    return (height, width) if orientation(image) in _ON_SIDE else (width, height)


def _opened(data: bytes) -> tuple[Image.Image, bytes] | BadRecord:
    """The picture, not yet loaded, and the bytes it is in; or why there is none."""
    if not data:
        return BadRecord("zero_bytes")
    data = bitmaps.icon_with_masks(mending.cursor_as_icon(data))
    if bitmaps.has_alpha(data):
        data = bitmaps.sound_bitmap(data) or data
    try:
        return _opened_by_pillow(data)
    except Image.DecompressionBombError as error:
        return BadRecord("absurd_size", str(error))
    except Exception as error:  # Pillow's parsers raise almost anything on hostile bytes
        return _no_picture(data, error)


def _opened_by_pillow(data: bytes) -> tuple[Image.Image, bytes]:
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
        if data.startswith(b"\xff\xd8") and (profile := _profile_of_jpeg(image, data)):
            image.info["icc_profile"] = profile
        return image, data
    except Image.DecompressionBombError:
        raise
    except Exception:
        sound = _mended(data)
        if sound is None:
            raise
    return Image.open(io.BytesIO(sound), formats=_formats()), sound


def _profile_of_jpeg(image: Image.Image, data: bytes) -> bytes | None:
    """Its colour profile; Pillow finds none behind the header of the frame, nor one of two."""
    return image.info.get("icc_profile") or jpeg_header.colour_profile(data)


def _mended(data: bytes) -> bytes | None:
    """The same picture in bytes that Pillow reads, where it gave up; None if there are none."""
    return (
        mending.png_without_extras(data)
        or mending.png_with_checksum(data)
        or bitmaps.sound_bitmap(data)
    )


def _no_picture(data: bytes, error: Exception) -> BadRecord:
    if data.startswith(b"\x89PNG") and b"\0\0\0\0" in (data[16:20], data[20:24]):
        return BadRecord("absurd_size", "no pixels: its width or height is 0")
    if isinstance(error, UnidentifiedImageError):
        return BadRecord("undecodable", f"{kind_of(data)}; read are {', '.join(_formats())}")
    return BadRecord(_load_failure(error, data), f"{type(error).__name__}: {error}")


def _loaded(image: Image.Image, data: bytes) -> Image.Image:
    """All of a picture that was opened, upright, in RGB."""
    if getattr(image, "default_image", False):
        image = _animated(image, data)
    kind, tiles = image.format, list(getattr(image, "tile", ()))
    code = _CODES[kind](data) if kind in _CODES else None
    samples = str(tiles[0][3]) if kind == "PNG" and tiles else ""
    if samples and "transparency" in image.info:
        if samples in _SCALES:
            image.info["transparency"] *= _SCALES[samples]
        elif samples == "RGB;16B":  # Pillow keeps the upper 8 bits
            image.info["transparency"] = tuple(each >> 8 for each in image.info["transparency"])
    if kind == "TIFF":
        _read_planes_of_16_bits(image)
    image.load()
    if samples == "LA;16B":  # Pillow makes RGBA of it
        profile = image.info.get("icc_profile")
        image = image.convert("LA")
        image.info["icc_profile"] = profile
    if kind == "TIFF" and image.mode.startswith("I;16"):
        image = _of_16_bits(image, tiles)
    elif image.mode == "La":  # greys that alpha is multiplied into; Pillow has no way on from it
        image = image.convert("LA")
    turn = _TURNS.get(orientation(image))
    if kind == "AVIF" and image.info.get("icc_profile"):
        code = None
    image = colour.to_srgb(_of_8_bits(image), code)
    image = to_rgb(image if turn is None else image.transpose(turn))
    if kind == "GIF" and tiles:
        image = _on_white(image, tiles[0][1])
    elif kind == "WEBP" and turn is None and (box := mending.webp_frame(data)):
        image = _on_white(image, box)
    return image


def _animated(image: Image.Image, data: bytes) -> Image.Image:
    """The first frame of an animated PNG whose own pixels are only for those who know of none."""
    try:
        image.seek(1)
        image.load()
        return image
    except Exception:  # damaged, as in decode: then those pixels
        return Image.open(io.BytesIO(data), formats=("PNG",))


def _read_planes_of_16_bits(image: Image.Image) -> None:
    """Tell Pillow that the samples of separate planes have 16 bits; it takes them for 8."""
    tiles: list[Any] = getattr(image, "tile", [])
    info: Any = getattr(image, "tag_v2", {})
    modes = [tile[3][0] for tile in tiles if isinstance(tile[3], tuple) and tile[0] == "raw"]
    if set(info.get(258, ())) != {16} or len(set(modes)) < 2 or not all(len(m) == 1 for m in modes):
        return
    if set(modes) - set("RGBA"):
        raise ValueError(f"planes of 16 bits in {image.mode}; make 8 bits of them")
    if set(modes) >= {"R", "G", "B"}:
        end = "B" if info.prefix == b"MM" else "L"
        image.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(f"{tile[3][0]};16{end}", *tile[3][1:])) for tile in tiles
        ]


def _of_16_bits(image: Image.Image, tiles: Sequence[Any]) -> Image.Image:
    """A grey TIFF with samples from 0, black, to 65535; Pillow leaves those of 12 bits small."""
    samples = np.asarray(image)
    is_12_bit = any("I;12" in str(tile[3]) for tile in tiles)
    is_white_0 = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_0
    if not (is_12_bit or is_white_0):
        return image
    if is_12_bit:
        samples = samples << 4 | samples >> 8
    result = Image.fromarray(65535 - samples if is_white_0 else samples)
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result


def orientation(image: Image.Image) -> int:
    """The orientation that a picture's EXIF data say, 1 to 8.

    Browsers take no notice of what XMP says, or text chunks of a PNG. Pillow itself turns TIFF.
    """
    data = image.info.get("exif") if image.format != "TIFF" else None
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # no EXIF data at all
        return 1


def _on_white(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The first frame of an animation, which need not cover all of it: around it is nothing."""
    if box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image.crop(box), box[:2])
    return canvas


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of :data:`FORMATS` that this Pillow was built with; AVIF is not in each."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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


def is_changed(data: bytes, end: int) -> bool:
    """Whether a JPEG is to be turned or mirrored, or has other colours than sRGB, or its header is
    damaged.

    Args:
      data: of the file.
      end: EXIF data and a colour profile are looked for among so many bytes.
    """
    if data.find(b"Exif\x00\x00", 0, end) < 0 and data.find(b"ICC_PROFILE\x00", 0, end) < 0:
        return False
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        profile = _profile_of_jpeg(image, data)
        return orientation(image) != 1 or not colour.is_srgb(profile, image.mode)
    except Exception:  # as in decode
        return True


def _load_failure(error: Exception, data: bytes) -> str:
    text = str(error).lower()
    endings = ("truncated", "unexpected end", "not enough image data", "buffer is not large enough")
    is_short = any(ending in text for ending in endings) or mending.is_cut_webp(data)
    return "truncated" if is_short else "undecodable"


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode in RGB, on white where one sees through it."""
    image = _of_8_bits(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if colour.has_alpha(image):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey in 8 bits, on white where one sees through it; all else unchanged.

    Pillow's own conversion would clip at 255.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    samples = np.asarray(image)
    is_16_bit = image.mode != "F" and samples.min() >= 0 and samples.max() <= 65535
    if not image.mode.startswith("I;16") and not is_16_bit:
        # Nothing says which value is white: any choice would be a guess.
        raise ValueError("samples of 32 bits without a known range; make 8 or 16 bits of them")
    grey = (samples // 257).astype(np.uint8)
    if isinstance(seen_through := image.info.get("transparency"), int):
        grey = np.where(samples == seen_through, np.uint8(255), grey)
    result = Image.fromarray(grey)
    if "icc_profile" in image.info:
        result.info["icc_profile"] = image.info["icc_profile"]
    return result
