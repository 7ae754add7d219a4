"""Image op ``random_part``: a random part of a picture at its own size."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from jaxclip.data.image_op import Moving, Size, register


@register("random_part", level="example", draws=4)
def random_part(
    scale_min: float = 0.5,
    scale_max: float = 1.0,
    ratio_min: float = 0.5,
    ratio_max: float = 2.0,
) -> Moving:
    """Cut out a random part and leave its size alone, for pictures that keep their aspect ratio.

    The part has ``scale_min`` to ``scale_max`` of the area, and ``ratio_min`` to ``ratio_max``
    times the picture's aspect ratio (log-uniform), as far as it fits; its sides are whole pixels.
    """
    if not 0 < scale_min <= scale_max <= 1.0:
        raise ValueError(f"need 0 < scale_min={scale_min} <= scale_max={scale_max} <= 1")
    if not 0 < ratio_min <= ratio_max:
        raise ValueError(f"need 0 < ratio_min={ratio_min} <= ratio_max={ratio_max}")
    low, high = math.log(ratio_min), math.log(ratio_max)

    def box(size: Size, u: np.ndarray) -> tuple[int, int, int, int]:
        width, height = size
        share = math.sqrt(scale_min + float(u[0]) * (scale_max - scale_min))
        stretch = math.exp((low + float(u[1]) * (high - low)) / 2.0)
        across = max(1, min(width, round(width * share * stretch)))
        down = max(1, min(height, round(height * share / stretch)))
        left, top = int(u[2] * (width - across + 1)), int(u[3] * (height - down + 1))
        return left, top, left + across, top + down

    def apply(image: Image.Image, u: np.ndarray) -> Image.Image:
        return image.crop(box(image.size, u))

    def where(size: Size, u: np.ndarray) -> tuple[Size, np.ndarray]:
        left, top, right, bottom = box(size, u)
        return (right - left, bottom - top), np.array([[1.0, 0.0, -left], [0.0, 1.0, -top]])

    return Moving(apply, where)
