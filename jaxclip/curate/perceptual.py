"""Perceptual hashes of pictures: 64 bits that survive scaling and encoding."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from PIL import Image

# Grey levels' standard deviation below which a picture is flat: its hash would be noise.
_FLAT = 4.0


# Pixels of a side at which JPEGs are decoded at least: four times what a hash looks at.
DRAFT = 128


def phash(image: Image.Image) -> int | None:
    """The signs of the 8 x 8 low frequencies of 32 x 32 grey pixels (DCT-II), around their median.

    Returns:
      64 bits; None for a flat picture.
    """
    grey = _grey(image, (32, 32))
    if grey.std() < _FLAT:
        return None
    basis = _dct(32)[:8]
    low = basis @ grey @ basis.T
    return _bits(low > np.median(low))


def dhash(image: Image.Image) -> int | None:
    """Whether each of 9 x 8 grey pixels is brighter than that left of it; None if flat."""
    grey = _grey(image, (9, 8))
    return None if grey.std() < _FLAT else _bits(grey[:, 1:] > grey[:, :-1])


def colours(image: Image.Image) -> np.ndarray:
    """uint8[48]: the mean colours of 4 x 4 parts; hashes are of grey pictures."""
    small = image.resize((4, 4), Image.Resampling.BOX, reducing_gap=3.0)
    return np.asarray(small, np.uint8).reshape(-1)


def _grey(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    small = image.convert("L").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(small, np.float64)


@functools.cache
def _dct(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix."""
    k, n = np.mgrid[:size, :size]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * size)) * np.sqrt(2 / size)
    basis[0] /= np.sqrt(2)
    return basis


def _bits(signs: np.ndarray) -> int:
    return int.from_bytes(np.packbits(signs.reshape(-1)).tobytes(), "big")


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Bits in which uint64 hashes differ."""
    return np.bitwise_count(one ^ other).astype(np.int64)


@functools.cache
def masks(most: int, least_bits: int = 28) -> tuple[int, ...]:
    """Masks of which two hashes that differ in at most ``most`` bits agree under one.

    64 bits are cut into ``most + extra`` blocks; every choice of ``extra`` of them is a mask, and
    with ``most`` bits different one of these choices is untouched.

    Args:
      most: bits, at most 8.
      least_bits: of each mask; fewer would bring together too many that are not alike.

    Raises:
      ValueError: ``most`` is too large for 64 bits.
    """
    for extra in range(1, 9):
        blocks = np.array_split(np.arange(64), most + extra)
        chosen = [
            sum(1 << int(bit) for block in some for bit in block)
            for some in itertools.combinations(blocks, extra)
        ]
        if min(mask.bit_count() for mask in chosen) >= least_bits:
            return tuple(chosen)
    raise ValueError(f"distance={most} is too large for hashes of 64 bits; use at most 8")


def bands(hashes: np.ndarray, most: int) -> np.ndarray:
    """uint64[n, m]: keys of which two hashes within a distance share one.

    Args:
      hashes: uint64[n].
      most: the distance in bits.
    """
    chosen = np.array(masks(most), np.uint64)
    keys = hashes[:, None] & chosen
    # Which mask it was is part of the key.
    turn = np.arange(len(chosen), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (keys * np.uint64(0xD1B54A32D192ED03)) ^ turn
