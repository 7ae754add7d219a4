"""Image ops on one Pillow image of any size: resizes, crops and rotations.

Interpolation is Pillow's, with antialiasing, so evaluation sees the same pixels as the
preprocessing of published models: ``resize_small|center_crop`` (CLIP), ``resize`` (SigLIP), or
``resize_longest|pad(fill=0)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from jaxclip.data.image_op import Cut, Moving, Size, register

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
    """Check the side of an image, which ``image_chain.build`` fills in where none is written."""
    if size is None or size < 1:
        raise ValueError(f"size={size} must be at least 1")
    return size


def _cut_and_scale(box: tuple[float, float, float, float], size: Size) -> np.ndarray:
    """float64[2, 3]: the pixels of ``box`` become an image of ``size``."""
    left, top, right, bottom = box
    across, down = size[0] / (right - left), size[1] / (bottom - top)
    return np.array([[across, 0.0, -left * across], [0.0, down, -top * down]])


def _shift(size: Size, offset: tuple[float, float]) -> tuple[Size, np.ndarray]:
    return size, np.array([[1.0, 0.0, offset[0]], [0.0, 1.0, offset[1]]])


def _scaled(size_after: Callable[[Size], Size], method: str) -> Moving:
    """Scale the whole image to a size that depends on its own."""
    resample = _method(method)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        shape = size_after(image.size)
        return image if shape == image.size else image.resize(shape, resample)

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        return size_after(size), _cut_and_scale((0, 0, *size), size_after(size))

    def cut(size: Size, u: np.ndarray) -> Cut:
        return Cut((0, 0, *size), size_after(size), method)

    return Moving(apply, where, cut)


@register("resize", level="example", keeps_square=True)
def resize(size: int | None = None, method: str = "bicubic") -> Moving:
    """Stretch to ``size`` x ``size``."""
    side = _side(size)
    return _scaled(lambda _: (side, side), method)


@register("resize_small", level="example", keeps_square=True)
def resize_small(size: int | None = None, method: str = "bicubic") -> Moving:
    """Scale so that the shorter side becomes ``size``, keeping the aspect ratio."""
    side = _side(size)

    def size_after(size: Size) -> Size:
        short = min(size)
        # The longer side is rounded down, as torchvision does it.
        return side * size[0] // short, side * size[1] // short

    return _scaled(size_after, method)


@register("resize_longest", level="example", keeps_square=True)
def resize_longest(size: int | None = None, method: str = "bicubic") -> Moving:
    """Scale so that the longer side becomes ``size``, keeping the aspect ratio."""
    side = _side(size)

    def size_after(size: Size) -> Size:
        # The shorter side is rounded, halves to even, as open_clip does it.
        ratio = max(size[0] / side, size[1] / side)
        return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))

    return _scaled(size_after, method)


@register("pad", level="example", keeps_square=True)
def pad(fill: int = 255) -> Moving:
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

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        side = max(size)
        return _shift((side, side), ((side - size[0]) // 2, (side - size[1]) // 2))

    return Moving(apply, where)


def _crop(side: int, corner: Callable[[Size, np.ndarray], tuple[int, int]]) -> Moving:
    """Cut out ``side`` x ``side`` pixels from a corner on (all there is of a smaller image)."""

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        width, height = image.size
        left, top = corner(image.size, u)
        return image.crop((left, top, min(width, left + side), min(height, top + side)))

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        left, top = corner(size, u)
        return _shift((min(size[0] - left, side), min(size[1] - top, side)), (-left, -top))

    return Moving(apply, where)


@register("center_crop", level="example", keeps_square=True)
def center_crop(size: int | None = None, rounding: str = "even") -> Moving:
    """Cut out the central ``size`` x ``size`` pixels (all there is where the image is smaller).

    Where an odd number of pixels is cut away, the middle lies between two: ``rounding="even"``
    takes the even one, as torchvision does, ``"down"`` the lower one, as transformers does.
    """
    side = _side(size)
    if rounding not in ("even", "down"):
        raise ValueError(f"rounding={rounding!r} must be even or down")
    whole = round if rounding == "even" else math.floor

    def corner(size: Size, u: np.ndarray) -> tuple[int, int]:
        return max(0, whole((size[0] - side) / 2)), max(0, whole((size[1] - side) / 2))

    return _crop(side, corner)


@register("random_crop", level="example", draws=2, keeps_square=True)
def random_crop(size: int | None = None) -> Moving:
    """Cut out ``size`` x ``size`` pixels anywhere (all there is where the image is smaller)."""
    side = _side(size)

    def corner(size: Size, u: np.ndarray) -> tuple[int, int]:
        width, height = size
        return int(u[0] * (max(0, width - side) + 1)), int(u[1] * (max(0, height - side) + 1))

    return _crop(side, corner)


@register("random_resized_crop", level="example", draws=4)
def random_resized_crop(
    scale_min: float = 0.08,
    scale_max: float = 1.0,
    ratio_min: float = 3 / 4,
    ratio_max: float = 4 / 3,
    size: int | None = None,
    method: str = "bicubic",
) -> Moving:
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

    def box(size: Size, u: np.ndarray) -> tuple[float, float, float, float]:
        width, height = size
        area = width * height * (scale_min + float(u[0]) * (scale_max - scale_min))
        ratio = math.exp(low + float(u[1]) * (high - low))
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        shrink = min(1.0, width / crop_width, height / crop_height)
        crop_width, crop_height = crop_width * shrink, crop_height * shrink
        left = max(0.0, float(u[2]) * (width - crop_width))
        top = max(0.0, float(u[3]) * (height - crop_height))
        return left, top, min(width, left + crop_width), min(height, top + crop_height)

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        return image.resize((side, side), resample, box=box(image.size, u), reducing_gap=2.0)

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        return (side, side), _cut_and_scale(box(size, u), (side, side))

    def cut(size: Size, u: np.ndarray) -> Cut:
        return Cut(box(size, u), (side, side), method)

    return Moving(apply, where, cut)


@register("affine", level="example", draws=6)
def affine(
    degrees: float = 0.0,
    translate: float = 0.0,
    scale_min: float = 1.0,
    scale_max: float = 1.0,
    shear: float = 0.0,
    fill: int = 255,
    p: float = 1.0,
) -> Moving:
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

    def inverse(size: Size, u: np.ndarray) -> tuple[float, float, float, float, float, float]:
        """Output pixel -> input pixel, which is what Pillow wants."""
        width, height = size
        turn, lean, grow, shift_x, shift_y = (float(value) for value in u[1:])
        angle = math.radians(degrees) * (2.0 * turn - 1.0)
        skew = math.tan(math.radians(shear) * (2.0 * lean - 1.0))
        zoom = scale_min * (scale_max / scale_min) ** grow
        a, c = math.cos(angle) / zoom, -math.sin(angle) / zoom
        b, d = math.sin(angle) / zoom + skew * a, math.cos(angle) / zoom + skew * c
        out_x = width / 2.0 + translate * width * (2.0 * shift_x - 1.0)
        out_y = height / 2.0 + translate * height * (2.0 * shift_y - 1.0)
        return (
            a, b, width / 2.0 - a * out_x - b * out_y,
            c, d, height / 2.0 - c * out_x - d * out_y,
        )  # fmt: skip

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        if u[0] >= p:
            return image
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            inverse(image.size, u),
            Image.Resampling.BILINEAR,
            fillcolor=(fill, fill, fill),
        )

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        if u[0] >= p:
            return _shift(size, (0.0, 0.0))
        back = np.array([*inverse(size, u), 0.0, 0.0, 1.0]).reshape(3, 3)
        return size, np.linalg.inv(back)[:2]

    return Moving(apply, where)


@register("rotate", level="example", draws=6)
def rotate(degrees: float = 15.0, fill: int = 255, p: float = 1.0) -> Moving:
    """Rotate by an angle drawn from [-degrees, degrees]."""
    return affine(degrees=degrees, fill=fill, p=p)
