"""Pictures of any aspect ratio as sequences of patches (NaFlex; SigLIP 2, arXiv:2502.14786).

A picture keeps its aspect ratio up to less than a patch a side: it is resized to the largest
multiples of the patch size of which at most so many patches are cut.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

_LARGEST_SCALE = 100.0
_PRECISION = 1e-5
_METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def grid_of(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture.

    The scale is found by bisection to 1e-5, as SigLIP 2's own code does: where two grids are
    that near, the smaller one may win.

    Args:
      height: of the picture, pixels.
      width: likewise.
      patch_size: side of a patch.
      max_patches: the most patches, at least 1.

    Returns:
      ``(rows, columns)``, each at least 1, ``rows * columns <= max_patches``.

    Raises:
      ValueError: a picture without pixels, or fewer than one patch.
    """
    if min(height, width, patch_size, max_patches) < 1:
        raise ValueError(
            f"a picture of {height} x {width} pixels in at most {max_patches} patches of "
            f"{patch_size}: all must be at least 1"
        )

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (math.ceil(side * scale / patch_size) for side in (height, width))
        return max(1, rows), max(1, columns)

    low, high = _PRECISION / 10, _LARGEST_SCALE
    while high - low >= _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(grid(middle)) <= max_patches else (low, middle)
    return grid(low)


def cut(
    image: np.ndarray, patch_size: int, max_patches: int, *, method: str = "bilinear"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resize a picture and cut it into patches.

    Args:
      image: uint8[H, W, 3].
      patch_size: side of a patch, p.
      max_patches: length of the sequence, N.
      method: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``, with antialiasing.

    Returns:
      ``(patches, valid, grid)``: uint8[N, p * p * 3] row by row, zeros behind the last one;
      bool[N]; int32[2], rows and columns.

    Raises:
      ValueError: an unknown method, or a picture without pixels.
    """
    if method not in _METHODS:
        raise ValueError(f"method={method!r}; use {', '.join(map(repr, _METHODS))}")
    rows, columns = grid_of(image.shape[0], image.shape[1], patch_size, max_patches)
    size = (columns * patch_size, rows * patch_size)
    resized = np.asarray(Image.fromarray(image).resize(size, _METHODS[method]))
    pieces = resized.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    patches = np.zeros((max_patches, patch_size * patch_size * 3), np.uint8)
    patches[: rows * columns] = pieces.reshape(rows * columns, -1)
    valid = np.arange(max_patches) < rows * columns
    return patches, valid, np.array([rows, columns], np.int32)
