"""Image ops on one Pillow image of any size: resizes and crops.

Interpolation is Pillow's, with antialiasing, so evaluation sees the same pixels as the
preprocessing of the published CLIP models (``resize_small`` bicubic, then ``center_crop``).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from jaxclip.data.image_ops import ExampleFn, register

_METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _method(name: str) -> Image.Resampling:
    if name not in _METHODS:
        raise ValueError(f"method={name!r} must be one of {', '.join(_METHODS)}")
    return _METHODS[name]


def _positive(**sizes: float) -> None:
    for name, value in sizes.items():
        if value is None or value <= 0:
            raise ValueError(f"{name}={value} must be above 0")


@register("resize", level="example")
def resize(size: int | None = None, method: str = "bicubic") -> ExampleFn:
    """Stretch to ``size`` x ``size``."""
    _positive(size=size)
    resample = _method(method)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        return image if image.size == (size, size) else image.resize((size, size), resample)

    return apply


@register("resize_small", level="example")
def resize_small(size: int | None = None, method: str = "bicubic") -> ExampleFn:
    """Scale so that the shorter side becomes ``size``, keeping the aspect ratio."""
    _positive(size=size)
    resample = _method(method)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        scale = size / min(width, height)
        shape = (max(size, round(width * scale)), max(size, round(height * scale)))
        return image if shape == image.size else image.resize(shape, resample)

    return apply


@register("pad", level="example")
def pad(fill: int = 255) -> ExampleFn:
    """Pad the shorter side evenly to a square, with grey level ``fill``."""
    if not 0 <= fill <= 255:
        raise ValueError(f"fill={fill} must be between 0 and 255")

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        side = max(width, height)
        if width == height:
            return image
        square = Image.new("RGB", (side, side), (fill, fill, fill))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    return apply


@register("center_crop", level="example")
def center_crop(size: int | None = None) -> ExampleFn:
    """Cut out the central ``size`` x ``size`` pixels (all there is where the image is smaller)."""
    _positive(size=size)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        left, top = max(0, (width - size + 1) // 2), max(0, (height - size + 1) // 2)
        return image.crop((left, top, min(width, left + size), min(height, top + size)))

    return apply


@register("random_crop", level="example", draws=2)
def random_crop(size: int | None = None) -> ExampleFn:
    """Cut out ``size`` x ``size`` pixels anywhere (all there is where the image is smaller)."""
    _positive(size=size)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        left = int(u[0] * (max(0, width - size) + 1))
        top = int(u[1] * (max(0, height - size) + 1))
        return image.crop((left, top, min(width, left + size), min(height, top + size)))

    return apply


@register("random_resized_crop", level="example", draws=4)
def random_resized_crop(
    scale_min: float = 0.08,
    scale_max: float = 1.0,
    ratio_min: float = 3 / 4,
    ratio_max: float = 4 / 3,
    size: int | None = None,
    method: str = "bicubic",
) -> ExampleFn:
    """Cut out a random part and scale it to ``size`` x ``size`` (Szegedy et al., 2015).

    The part has ``scale_min`` to ``scale_max`` of the area and an aspect ratio between ``ratio_min``
    and ``ratio_max`` (log-uniform). A box that does not fit is shrunk until it does, keeping its
    aspect ratio, in place of being drawn again: so each example takes a fixed number of draws.
    """
    _positive(scale_min=scale_min, ratio_min=ratio_min, size=size)
    if not scale_min <= scale_max <= 1.0:
        raise ValueError(f"need scale_min={scale_min} <= scale_max={scale_max} <= 1")
    if not ratio_min <= ratio_max:
        raise ValueError(f"need ratio_min={ratio_min} <= ratio_max={ratio_max}")
    resample = _method(method)
    low, high = math.log(ratio_min), math.log(ratio_max)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        area = width * height * (scale_min + float(u[0]) * (scale_max - scale_min))
        ratio = math.exp(low + float(u[1]) * (high - low))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        shrink = min(1.0, width / crop_width, height / crop_height)
        crop_width, crop_height = crop_width * shrink, crop_height * shrink
        left = float(u[2]) * (width - crop_width)
        top = float(u[3]) * (height - crop_height)
        right, bottom = min(width, left + crop_width), min(height, top + crop_height)
        return image.resize((size, size), resample, box=(left, top, right, bottom), reducing_gap=2.0)

    return apply
