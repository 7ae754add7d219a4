"""Image op ``cutout``: squares are covered."""

from __future__ import annotations

import numpy as np

from jaxclip.data import order
from jaxclip.data.image_op import BatchFn, register


@register("cutout", level="batch", draws=2)
def cutout(side: int = 16, holes: int = 1, fill: float = 127.5) -> BatchFn:
    """Cover squares with grey (DeVries and Taylor, 2017, arXiv:1708.04552).

    The centre of a square is any pixel alike, so squares often lie partly outside, and less is
    covered. The paper: one square, of 16 pixels for CIFAR-10 (32 pixels), 8 for CIFAR-100, 20 for
    SVHN, on every picture, set to 0 after normalisation: that is the default ``fill`` with
    ``data.image_mean`` 0.5, up to half a grey level.

    Args:
      side: of a square in pixels, even.
      holes: how many.
      fill: grey level.
    """
    if side < 0 or side % 2:
        raise ValueError(f"side={side} must be an even number of at least 0")
    if holes < 0:
        raise ValueError(f"holes={holes} must not be negative")
    if not 0.0 <= fill <= 255.0:
        raise ValueError(f"fill={fill} must be between 0 and 255")

    def apply(images: np.ndarray, u: np.ndarray) -> np.ndarray:
        height, width = images.shape[2:]
        for image, row in zip(images, u, strict=True):
            for down, across in order.spread(row, 2 * holes).reshape(-1, 2):
                y, x = int(down * height), int(across * width)
                top, left = max(0, y - side // 2), max(0, x - side // 2)
                image[:, top : y + side // 2, left : x + side // 2] = fill
        return images

    return apply
