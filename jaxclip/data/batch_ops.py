"""Image ops on batches of equally sized images, vectorised with NumPy.

Every function here takes ``images`` f32[n, 3, H, W] in [0, 255], which it may overwrite, and
uniform numbers ``u`` f32[n, k]. Planes lie one after the other (channels first), which is what
makes colour arithmetic fast. Each row is treated by itself: what comes out for an example does not
depend on the others, to the last bit, so that batches can be split over processes and threads at
will. For that, per-pixel work is exactly rounded arithmetic only, and functions of a row's random
numbers are computed in float64.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from jaxclip.data.image_op import BatchFn, Either, Size, register

# Luma of Rec. 601, as everywhere in image augmentation.
LUMA = np.array([0.299, 0.587, 0.114])
# Scales of the colour differences B - Y and R - Y to U and V.
_U_SCALE, _V_SCALE = 0.492, 0.877


def _probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p} must be between 0 and 1")


def _sometimes(p: float, apply: BatchFn) -> BatchFn:
    """Run ``apply`` on the rows whose first number is below ``p``, and on those alone.

    ``apply`` is given the remaining numbers of these rows.
    """
    _probability(p)

    def maybe(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(u[:, 0] < p)
        if len(rows) == len(images):
            return apply(images, u[:, 1:])
        if len(rows):
            images[rows] = apply(images[rows], u[rows, 1:])
        return images

    return maybe


def _per_row(values: np.ndarray) -> np.ndarray:
    """f32[n, 1, 1, 1] out of n numbers."""
    return np.asarray(values, np.float32)[:, None, None, None]


def _clip(images: np.ndarray) -> np.ndarray:
    return np.clip(images, 0.0, 255.0, out=images)


def _log_uniform(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """f64[n] between ``low`` and ``high``."""
    return np.exp(math.log(low) + u.astype(np.float64) * (math.log(high) - math.log(low)))


def _gray(images: np.ndarray) -> np.ndarray:
    """Luma, f32[n, 1, H, W]."""
    weights = LUMA.astype(np.float32)
    gray = images[:, 0:1] * weights[0]
    gray += images[:, 1:2] * weights[1]
    gray += images[:, 2:3] * weights[2]
    return gray


@register("flip", level="either", draws=1)
def flip(p: float = 0.5) -> Either:
    """Mirror left and right."""

    def example(image: Image.Image, u: np.ndarray) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[0] < p else image

    def pixels(array: np.ndarray, u: np.ndarray) -> np.ndarray:
        return array[:, ::-1] if u[0] < p else array  # who copies it next can do it then

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        sign, start = (-1.0, size[0]) if u[0] < p else (1.0, 0.0)
        return size, np.array([[sign, 0.0, start], [0.0, 1.0, 0.0]])

    batch = _sometimes(p, lambda images, u: images[..., ::-1])
    return Either(example, batch, pixels, where)


@register("color_jitter", level="batch", draws=5)
def color_jitter(
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    p: float = 1.0,
) -> BatchFn:
    """Change brightness, contrast, saturation and hue, in this order.

    Factors are drawn from [1 - x, 1 + x]. Hue turns the chroma plane of YUV by up to ``hue`` full
    turns. All four are linear in RGB and so become one 3 x 3 matrix and an offset for each image,
    clipped once at the end (not after each of the four).
    """
    for name, value in (("brightness", brightness), ("contrast", contrast)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value} must be between 0 and 1")
    if saturation < 0.0:
        raise ValueError(f"saturation={saturation} must not be negative")
    if not 0.0 <= hue <= 0.5:
        raise ValueError(f"hue={hue} must be between 0 and 0.5 (half a turn)")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        signed = 2.0 * u.astype(np.float64) - 1.0
        bright = 1.0 + brightness * signed[:, 0]
        amount = 1.0 + contrast * signed[:, 1]
        strength = np.maximum(0.0, 1.0 + saturation * signed[:, 2])
        matrix = chroma_matrix(strength, 2.0 * np.pi * hue * signed[:, 3])
        matrix *= (bright * amount)[:, None, None]
        # The matrix keeps grey as it is, so the grey that contrast pulls towards passes unchanged.
        offset = np.zeros(len(images))
        if contrast:
            means = images.reshape(len(images), 3, -1).mean(axis=-1).astype(np.float64)
            offset = (1.0 - amount) * bright * (means @ LUMA)
        return _clip(_mix_channels(images, matrix, offset))

    return _sometimes(p, apply)


def chroma_matrix(strength: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Matrices that scale and turn the colour of RGB pixels and keep their luma.

    Args:
      strength: f64[n], factor of the chroma; 0 = grey.
      angle: f64[n], turn in the U-V plane, in radians.

    Returns:
      f64[n, 3, 3], to be multiplied with RGB columns.
    """
    identity = np.eye(3)
    to_u = _U_SCALE * (identity[2] - LUMA)
    to_v = _V_SCALE * (identity[0] - LUMA)
    cos, sin = strength * np.cos(angle), strength * np.sin(angle)
    turned_u = cos[:, None] * to_u - sin[:, None] * to_v
    turned_v = sin[:, None] * to_u + cos[:, None] * to_v
    red = LUMA + turned_v / _V_SCALE
    blue = LUMA + turned_u / _U_SCALE
    green = (LUMA - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
    return np.stack([red, green, blue], axis=1)


def _mix_channels(images: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``matrix @ pixel + offset``, spelled out: a matrix product would not be as reproducible."""
    matrix32 = matrix.astype(np.float32)[..., None, None]
    offset32 = offset.astype(np.float32)[:, None, None]
    result = np.empty_like(images)
    scratch = np.empty_like(images[:, 0])
    for row in range(3):
        plane = result[:, row]
        np.multiply(images[:, 0], matrix32[:, row, 0], out=plane)
        for column in (1, 2):
            np.multiply(images[:, column], matrix32[:, row, column], out=scratch)
            plane += scratch
        plane += offset32
    return result


@register("grayscale", level="batch", draws=1)
def grayscale(p: float = 0.1) -> BatchFn:
    """Remove all colour."""
    return _sometimes(p, lambda images, u: np.broadcast_to(_gray(images), images.shape).copy())


@register("invert", level="batch", draws=1)
def invert(p: float = 0.1) -> BatchFn:
    """Turn into the negative."""
    return _sometimes(p, lambda images, u: np.subtract(255.0, images, out=images))


@register("channel_shuffle", level="batch", draws=2)
def channel_shuffle(p: float = 0.1) -> BatchFn:
    """Permute red, green and blue; one of the five orders that change something."""
    orders = np.array([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        chosen = orders[(u[:, 0] * len(orders)).astype(np.int64)]
        return images[np.arange(len(images))[:, None], chosen]

    return _sometimes(p, apply)


@register("posterize", level="batch", draws=2)
def posterize(levels: int = 4, p: float = 0.1) -> BatchFn:
    """Keep only some evenly spaced values in each channel: ``levels`` to ``4 * levels`` of them."""
    if not 2 <= levels <= 64:
        raise ValueError(f"levels={levels} must be between 2 and 64")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        steps = np.floor(_log_uniform(u[:, 0], levels, 4 * levels)) - 1.0
        images *= _per_row(steps / 255.0)
        np.rint(images, out=images)
        images *= _per_row(255.0 / steps)
        return _clip(images)

    return _sometimes(p, apply)


@register("solarize", level="batch", draws=2)
def solarize(threshold: int = 128, p: float = 0.1) -> BatchFn:
    """Invert what is brighter than a threshold drawn from [threshold, 255]."""
    if not 0 <= threshold <= 255:
        raise ValueError(f"threshold={threshold} must be between 0 and 255")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        limit = _per_row(threshold + u[:, 0] * (255.0 - threshold))
        return np.where(images > limit, np.float32(255.0) - images, images)

    return _sometimes(p, apply)


@register("gamma", level="batch", draws=2)
def gamma(limit: float = 1.5, p: float = 0.5) -> BatchFn:
    """Raise values to a power drawn from [1 / limit, limit], log-uniform."""
    if limit < 1.0:
        raise ValueError(f"limit={limit} must be at least 1")
    grid = np.arange(256) / 255.0

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        powers = _log_uniform(u[:, 0], 1.0 / limit, limit)
        for image, power in zip(images, powers, strict=True):
            table = (255.0 * grid**power).astype(np.float32)
            image[...] = table[np.rint(image).astype(np.uint8)]
        return images

    return _sometimes(p, apply)


@register("autocontrast", level="batch", draws=1)
def autocontrast(p: float = 0.1) -> BatchFn:
    """Stretch each channel to the full range."""

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        low = images.min(axis=(2, 3), keepdims=True)
        span = images.max(axis=(2, 3), keepdims=True) - low
        flat = span < 1.0  # nothing to stretch
        images -= np.where(flat, np.float32(0.0), low)
        images *= np.where(flat, np.float32(1.0), np.float32(255.0) / np.maximum(span, 1.0))
        return _clip(images)

    return _sometimes(p, apply)


@register("blur", level="batch", draws=2)
def blur(sigma_max: float = 1.5, p: float = 0.1) -> BatchFn:
    """Gaussian blur with a standard deviation in pixels drawn from [0.1, sigma_max]."""
    if not 0.1 <= sigma_max <= 20.0:
        raise ValueError(f"sigma_max={sigma_max} must be between 0.1 and 20 pixels")
    radius = max(1, math.ceil(2.0 * sigma_max))
    offsets = np.arange(-radius, radius + 1)

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        sigma = 0.1 + u[:, :1].astype(np.float64) * (sigma_max - 0.1)
        kernels = np.exp(-0.5 * (offsets / sigma) ** 2)
        kernels /= kernels.sum(axis=1, keepdims=True)
        for axis in (2, 3):
            images = _convolve(images, kernels, radius, axis)
        return _clip(images)

    return _sometimes(p, apply)


def _convolve(images: np.ndarray, kernels: np.ndarray, radius: int, axis: int) -> np.ndarray:
    """Weighted sum of shifted copies along one axis; beyond the border the edge is repeated."""
    widths = [(0, 0)] * 4
    widths[axis] = (radius, radius)
    padded = np.pad(images, widths, mode="edge")
    size = images.shape[axis]
    result = np.zeros_like(images)
    for shift in range(2 * radius + 1):
        window = [slice(None)] * 4
        window[axis] = slice(shift, shift + size)
        result += padded[tuple(window)] * _per_row(kernels[:, shift])
    return result


@register("edges", level="batch", draws=2)
def edges(strength: float = 1.0, p: float = 0.1) -> BatchFn:
    """Draw dark contours on white, as a pencil would: the gradient magnitude of the luma."""
    if strength <= 0:
        raise ValueError(f"strength={strength} must be above 0")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        gray = _gray(images)
        across, down = np.zeros_like(gray), np.zeros_like(gray)
        across[..., :-1] = gray[..., 1:] - gray[..., :-1]
        down[..., :-1, :] = gray[..., 1:, :] - gray[..., :-1, :]
        lines = np.sqrt(across * across + down * down)
        lines *= _per_row(strength * (1.0 + 2.0 * u[:, 0].astype(np.float64)))
        return np.broadcast_to(_clip(255.0 - lines), images.shape).copy()

    return _sometimes(p, apply)


@register("random_erasing", level="batch", draws=8)
def random_erasing(
    area_min: float = 0.02, area_max: float = 0.2, ratio_max: float = 3.0, p: float = 0.25
) -> BatchFn:
    """Cover a random rectangle with a random colour (Zhong et al., 2017, arXiv:1708.04896).

    Args:
      area_min: the rectangle has at least this fraction of the image's area.
      area_max: and at most this.
      ratio_max: its aspect ratio lies between 1 / ratio_max and ratio_max.
      p: probability.
    """
    if not 0 < area_min <= area_max < 1:
        raise ValueError(f"need 0 < area_min={area_min} <= area_max={area_max} < 1")
    if ratio_max < 1:
        raise ValueError(f"ratio_max={ratio_max} must be at least 1")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        height, width = images.shape[2:]
        ratios = _log_uniform(u[:, 1], 1.0 / ratio_max, ratio_max)
        for image, row, ratio in zip(images, u.astype(np.float64), ratios, strict=True):
            area = area_min + row[0] * (area_max - area_min)
            tall = max(1, round(height * min(1.0, math.sqrt(area * ratio))))
            wide = max(1, round(width * min(1.0, math.sqrt(area / ratio))))
            top = int(row[2] * (height - tall + 1))
            left = int(row[3] * (width - wide + 1))
            image[:, top : top + tall, left : left + wide] = 255.0 * row[4:7, None, None]
        return images

    return _sometimes(p, apply)


@register("background", level="batch", draws=4)
def background(p: float = 0.5, white: int = 250) -> BatchFn:
    """Give pictures on a white ground a random colour behind them.

    Ground is what is white (every channel at least ``white``) in a straight line to an edge of the
    picture. It and two pixels beside it are multiplied by the colour, so that the soft edge of the
    thing in front blends into its new ground.
    """
    if not 1 <= white <= 255:
        raise ValueError(f"white={white} must be between 1 and 255")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        is_white = (images.min(axis=1) >= white).view(np.uint8)
        ground = np.zeros_like(is_white)
        for axis in (1, 2):
            for flipped in (False, True):
                view = np.flip(is_white, axis) if flipped else is_white
                reached = np.minimum.accumulate(view, axis=axis)
                ground |= np.flip(reached, axis) if flipped else reached
        for axis in (1, 2, 1, 2):  # two pixels wider
            here, there = [slice(None)] * 3, [slice(None)] * 3
            here[axis], there[axis] = slice(1, None), slice(None, -1)
            grown = ground.copy()
            grown[tuple(here)] |= ground[tuple(there)]
            grown[tuple(there)] |= ground[tuple(here)]
            ground = grown
        mask = ground[:, None].astype(np.float32)
        return images * (1.0 + mask * (u[:, :3, None, None] - np.float32(1.0)))

    return _sometimes(p, apply)
