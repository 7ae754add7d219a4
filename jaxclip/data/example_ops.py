"""Image ops on one Pillow image of any size: resizes, crops and rotations.

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
        if value <= 0:
            raise ValueError(f"{name}={value} must be above 0")


def _side(size: int | None) -> int:
    """Check the side of an image, which :func:`image_ops.build` fills in where none is written."""
    if size is None or size < 1:
        raise ValueError(f"size={size} must be at least 1")
    return size


@register("resize", level="example", keeps_square=True)
def resize(size: int | None = None, method: str = "bicubic") -> ExampleFn:
    """Stretch to ``size`` x ``size``."""
    side = _side(size)
    resample = _method(method)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        return image if image.size == (side, side) else image.resize((side, side), resample)

    return apply


@register("resize_small", level="example", keeps_square=True)
def resize_small(size: int | None = None, method: str = "bicubic") -> ExampleFn:
    """Scale so that the shorter side becomes ``size``, keeping the aspect ratio."""
    side = _side(size)
    resample = _method(method)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        # The longer side is rounded down, as torchvision does it.
        shape = (side * width // short, side * height // short)
        return image if shape == image.size else image.resize(shape, resample)

    return apply


@register("pad", level="example", keeps_square=True)
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


@register("center_crop", level="example", keeps_square=True)
def center_crop(size: int | None = None) -> ExampleFn:
    """Cut out the central ``size`` x ``size`` pixels (all there is where the image is smaller)."""
    side = _side(size)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        # Halves go to the even pixel, as torchvision does it.
        left, top = max(0, round((width - side) / 2)), max(0, round((height - side) / 2))
        return image.crop((left, top, min(width, left + side), min(height, top + side)))

    return apply


@register("random_crop", level="example", draws=2, keeps_square=True)
def random_crop(size: int | None = None) -> ExampleFn:
    """Cut out ``size`` x ``size`` pixels anywhere (all there is where the image is smaller)."""
    side = _side(size)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        left = int(u[0] * (max(0, width - side) + 1))
        top = int(u[1] * (max(0, height - side) + 1))
        return image.crop((left, top, min(width, left + side), min(height, top + side)))

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

    The part has ``scale_min`` to ``scale_max`` of the area and an aspect ratio between
    ``ratio_min`` and ``ratio_max`` (log-uniform). A box that does not fit is shrunk until it does,
    keeping its aspect ratio, in place of being drawn again: so each example takes a fixed number of
    draws.
    """
    side = _side(size)
    _positive(scale_min=scale_min, ratio_min=ratio_min)
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
        left = max(0.0, float(u[2]) * (width - crop_width))
        top = max(0.0, float(u[3]) * (height - crop_height))
        right, bottom = min(width, left + crop_width), min(height, top + crop_height)
        return image.resize(
            (side, side), resample, box=(left, top, right, bottom), reducing_gap=2.0
        )

    return apply


@register("affine", level="example", draws=6)
def affine(
    degrees: float = 0.0,
    translate: float = 0.0,
    scale_min: float = 1.0,
    scale_max: float = 1.0,
    shear: float = 0.0,
    fill: int = 255,
    p: float = 1.0,
) -> ExampleFn:
    """Rotate, shear, scale and shift about the centre, in one bilinear interpolation.

    Args:
      degrees: rotation is drawn from [-degrees, degrees].
      translate: shift in each direction, as a fraction of the side, from [-translate, translate].
      scale_min: zoom is drawn from [scale_min, scale_max], log-uniform; above 1 enlarges.
      scale_max: see scale_min.
      shear: horizontal shear angle in degrees, from [-shear, shear].
      fill: grey level of what comes in from outside.
      p: probability that anything is done at all.
    """
    if degrees < 0 or translate < 0 or not 0 <= shear < 90:
        raise ValueError("degrees, translate and shear must not be negative, and shear below 90")
    if not 0 < scale_min <= scale_max:
        raise ValueError(f"need 0 < scale_min={scale_min} <= scale_max={scale_max}")
    if not 0 <= fill <= 255:
        raise ValueError(f"fill={fill} must be between 0 and 255")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p} must be between 0 and 1")

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        if u[0] >= p:
            return image
        width, height = image.size
        turn, lean, grow, shift_x, shift_y = (float(value) for value in u[1:])
        angle = math.radians(degrees) * (2.0 * turn - 1.0)
        skew = math.tan(math.radians(shear) * (2.0 * lean - 1.0))
        zoom = scale_min * (scale_max / scale_min) ** grow
        # Pillow wants the inverse map, output -> input.
        a, c = math.cos(angle) / zoom, -math.sin(angle) / zoom
        b, d = math.sin(angle) / zoom + skew * a, math.cos(angle) / zoom + skew * c
        out_x = width / 2.0 + translate * width * (2.0 * shift_x - 1.0)
        out_y = height / 2.0 + translate * height * (2.0 * shift_y - 1.0)
        inverse = (
            a, b, width / 2.0 - a * out_x - b * out_y,
            c, d, height / 2.0 - c * out_x - d * out_y,
        )  # fmt: skip
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            inverse,
            Image.Resampling.BILINEAR,
            fillcolor=(fill, fill, fill),
        )

    return apply


@register("rotate", level="example", draws=6)
def rotate(degrees: float = 15.0, fill: int = 255, p: float = 1.0) -> ExampleFn:
    """Rotate by an angle drawn from [-degrees, degrees]."""
    return affine(degrees=degrees, fill=fill, p=p)
