"""Colours of pictures that say by numbers, not by a profile, what they are in: as Chromium does it.

A PNG may have chunks ``cICP`` (code points of ITU-T H.273), ``gAMA`` and ``cHRM``; an AVIF has code
points, and telephones write those of Display P3 or of high dynamic range. What has none of it, or
sRGB's, is left as it is.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

_PNG = b"\x89PNG\r\n\x1a\n"
# Chromaticities of red, green, blue and white as x and y, by their code points.
_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
_PRIMARIES: dict[int, tuple[float, ...]] = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *_C),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *_C),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    10: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1 / 3, 1 / 3),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),
}
# Powers by code points of transfer functions; browsers take that of television for BT.1886's.
_POWERS = {1: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 8: 1.0, 11: 2.4, 14: 2.4, 15: 2.4}
_SMPTE_240, _SRGB, _PQ, _SMPTE_428, _HLG = 7, 13, 16, 17, 18
# Of films, to which AVIF belongs, these and what is not specified are taken for sRGB's.
_UNSPECIFIED, _FILMS = 2, (1, 2, 6, 14, 15)
# A power of sRGB's by a PNG's gAMA, up to this.
_GAMMA, _NEAR = 2.2, 0.05
# Light in nits of white in ordinary pictures, and of the brightest in those of high dynamic range.
_WHITE, _PEAK = 203.0, 1000.0
# XYZ to the cones of the eye (Bradford), in which white points are made equal.
_CONES = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_STRIP = 1 << 20  # pixels that are worked on at once


class Code(NamedTuple):
    """What the numbers of a picture's colours mean.

    Attributes:
      primaries: x and y of red, green, blue and white.
      transfer: a code point, or the power itself.
    """

    primaries: tuple[float, ...]
    transfer: int | float


def of_png(data: bytes) -> Code | None:
    """What a PNG's chunks say; None where that is sRGB, nothing of use, or left to its profile.

    Code points go before a profile, those of sRGB, too.
    """
    said: dict[bytes, bytes] = {}
    for kind, content in _chunks(data):
        said.setdefault(kind, content)
    if len(said.get(b"cICP", b"")) == 4:
        primaries, transfer, matrix, is_full = said[b"cICP"]
        if not matrix and is_full == 1 and _is_known(primaries, transfer):
            code = Code(_PRIMARIES[primaries], transfer)
            return code if b"iCCP" in said else _unless_srgb(code)
    if b"iCCP" in said or b"sRGB" in said or len(said.get(b"gAMA", b"")) != 4:
        return None
    (gamma,) = struct.unpack(">I", said[b"gAMA"])
    if not gamma:
        return None
    chosen = _chromaticities(said.get(b"cHRM", b""))
    if chosen is None and abs(_GAMMA * gamma / 1e5 - 1) <= _NEAR:
        return None
    return Code(chosen or _PRIMARIES[1], 1e5 / gamma)


def of_avif(data: bytes) -> Code | None:
    """What an AVIF's code points say; None where that is sRGB or nothing of use."""
    place = data.find(b"colrnclx", 0, 1 << 16) + len(b"colrnclx")
    if place < len(b"colrnclx") or len(data) < place + 4:
        return None
    primaries, transfer = struct.unpack_from(">HH", data, place)
    primaries = 1 if primaries == _UNSPECIFIED else primaries
    transfer = _SRGB if transfer in _FILMS else transfer
    if not _is_known(primaries, transfer):
        return None
    return _unless_srgb(Code(_PRIMARIES[primaries], transfer))


def to_srgb(image: Image.Image, code: Code) -> Image.Image:
    """An RGB picture in the colours of sRGB."""
    linear, encoded = _linear(code.transfer), _encoded()
    is_high = code.transfer in (_PQ, _HLG)
    # The light of high dynamic range is mapped in BT.2020's primaries.
    first = _PRIMARIES[9] if is_high else code.primaries
    matrix = _between(first, _PRIMARIES[1])
    pixels = np.array(image)
    rows = max(1, _STRIP // max(1, image.width))
    for start in range(0, len(pixels), rows):
        light = linear[pixels[start : start + rows]]
        if is_high:
            light = light @ _between(code.primaries, first)
            light = _mapped(_displayed(light) if code.transfer == _HLG else light)
        found = np.clip(light @ matrix, 0, 1) * (len(encoded) - 1)
        pixels[start : start + rows] = encoded[np.rint(found).astype(np.int32)]
    return Image.fromarray(pixels)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Those of a PNG before its pixels that speak of colours."""
    position = len(_PNG)
    while data.startswith(_PNG) and position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, content = (
            data[position + 4 : position + 8],
            data[position + 8 : position + 8 + length],
        )
        if kind in (b"IDAT", b"IEND", b"PLTE"):
            return
        position += 12 + length
        is_wanted = kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM")
        checksum = data[position - 4 : position]
        if is_wanted and checksum == struct.pack(">I", zlib.crc32(kind + content)):
            yield kind, content


def _is_known(primaries: int, transfer: int) -> bool:
    others = (_SMPTE_240, _SRGB, _PQ, _SMPTE_428, _HLG)
    return primaries in _PRIMARIES and (transfer in _POWERS or transfer in others)


def _unless_srgb(code: Code) -> Code | None:
    return None if code == (_PRIMARIES[1], _SRGB) else code


def _chromaticities(content: bytes) -> tuple[float, ...] | None:
    """Those of a PNG's ``cHRM``; None if they are none."""
    if len(content) != 32:
        return None
    *white, rx, ry, gx, gy, bx, by = (each / 1e5 for each in struct.unpack(">8I", content))
    found = (rx, ry, gx, gy, bx, by, *white)
    try:
        return found if np.isfinite(_between(found, _PRIMARIES[1])).all() else None
    except (np.linalg.LinAlgError, ZeroDivisionError):
        return None


@functools.lru_cache(maxsize=64)
def _between(primaries: tuple[float, ...], others: tuple[float, ...]) -> np.ndarray:
    """float32[3, 3]: linear light of some primaries times this is that of others."""
    white, wanted = _xyz(primaries[6:]), _xyz(others[6:])
    adapted = np.linalg.inv(_CONES) @ np.diag((_CONES @ wanted) / (_CONES @ white)) @ _CONES
    found = np.linalg.inv(_to_xyz(others)) @ adapted @ _to_xyz(primaries)
    return found.T.astype(np.float32)


def _xyz(place: tuple[float, ...]) -> np.ndarray:
    x, y = place
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    # By x, y and z, for a primary of the colour space XYZ has no light: its y is 0.
    columns = np.array(
        [[x, y, 1 - x - y] for x, y in zip(primaries[:6:2], primaries[1:6:2], strict=True)]
    ).T
    return columns * np.linalg.solve(columns, _xyz(primaries[6:]))


@functools.lru_cache(maxsize=64)
def _linear(transfer: int | float) -> np.ndarray:
    """float32[256]: light by samples; 1 is white, of high dynamic range that of ordinary ones."""
    value = np.arange(256) / 255
    if isinstance(transfer, float) or transfer in _POWERS:
        light = value ** (transfer if isinstance(transfer, float) else _POWERS[transfer])
    elif transfer == _SRGB:
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    elif transfer == _SMPTE_240:
        light = np.where(value < 0.0913, value / 4, ((value + 0.1115) / 1.1115) ** (1 / 0.45))
    elif transfer == _SMPTE_428:
        light = value**2.6 * 52.37 / 48
    elif transfer == _PQ:  # SMPTE ST 2084
        root = value ** (32 / 2523)
        above = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
        light = 10_000 / _WHITE * above ** (16384 / 2610)
    else:  # HLG, ARIB STD-B67
        high = (np.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(value <= 0.5, value**2 / 3, high)
    return light.astype(np.float32)


def _displayed(light: np.ndarray) -> np.ndarray:
    """Light of a screen by that of a scene in HLG (ITU-R BT.2100, for 1000 nits)."""
    # Primaries that are no colours can make less than none.
    luminance = np.maximum(light @ np.array([0.2627, 0.6780, 0.0593], np.float32), 0)
    return light * (_PEAK / _WHITE * luminance**0.2)[..., None]


def _mapped(light: np.ndarray) -> np.ndarray:
    """Light of high dynamic range in that of ordinary pictures.

    White becomes half as bright, and above it a curve (a quadratic of Bézier's) leads to the
    brightest: the tone mapping by reference white of SMPTE ST 2094-50, for all colours as for the
    largest of a pixel's three.
    """
    largest = light.max(axis=-1, keepdims=True)
    end = _PEAK / _WHITE
    middle = 0.35 + 0.65 * 2
    bend, slope = 1 - 2 * middle + end, 2 * (middle - 1)
    part = np.minimum(largest, end) - 1
    t = (np.sqrt(slope**2 + 4 * bend * np.maximum(part, 0)) - slope) / (2 * bend)
    curve = (1 - t) ** 2 * 0.5 + 2 * t * (1 - t) * (0.35 * 0.5 + 0.65) + t**2
    return light * np.where(part <= 0, 0.5, curve / np.maximum(largest, 1e-6))


@functools.cache
def _encoded() -> np.ndarray:
    """uint8[65536]: samples of sRGB by light."""
    light = np.arange(1 << 16) / ((1 << 16) - 1)
    value = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * value).astype(np.uint8)
