"""Captions without their numbers, and pictures without the text in them, for scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Digits of any script.
_DIGITS = re.compile(r"\d+")
MASK = "#"


def without_numbers(text: str, how: str = "remove") -> str:
    """The caption without runs of digits (2309.13770), or with a mark for each.

    Args:
      text: the caption.
      how: ``"remove"`` or ``"mask"``.
    """
    return " ".join(_DIGITS.sub("" if how == "remove" else MASK, text).split())


def boxes_of(meta: Mapping[str, Any], name: str) -> np.ndarray:
    """float64[m, 4]: boxes (x0, y0, x1, y1) in [0, 1] out of a record's meta.

    A box is four numbers, or a polygon of ``[x, y]`` points, of which it is the hull.
    """
    found = []
    for each in meta.get(name) or ():
        try:
            array = np.asarray(each, np.float64)
        except (TypeError, ValueError):
            continue
        if array.shape == (4,):
            found.append(array)
        elif array.ndim == 2 and array.shape[1] == 2 and len(array) >= 3:
            found.append(np.concatenate([array.min(axis=0), array.max(axis=0)]))
    return np.clip(np.array(found).reshape(-1, 4), 0, 1)


def fill_boxes(pixels: np.ndarray, boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """A picture whose boxes have the mean colour of what surrounds them (T-MARS, 2307.03132).

    Args:
      pixels: uint8[H, W, 3].
      boxes: in [0, 1]; the surround is a rim of a tenth of the box's longer side, at least 2
        pixels.

    Returns:
      uint8[H, W, 3]; the same array where there are no boxes.
    """
    if not len(boxes):
        return pixels
    height, width = pixels.shape[:2]
    edges = np.asarray(boxes) * [width, height, width, height]
    lows, highs = np.floor(edges[:, :2]).astype(int), np.ceil(edges[:, 2:]).astype(int)
    covered = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(lows, highs, strict=True):
        covered[y0:y1, x0:x1] = True
    result = pixels.copy()
    for (x0, y0), (x1, y1) in zip(lows, highs, strict=True):
        rim = max(2, round(0.1 * max(x1 - x0, y1 - y0)))
        part = np.s_[max(0, y0 - rim) : y1 + rim, max(0, x0 - rim) : x1 + rim]
        around = pixels[part][~covered[part]]
        colour = around.mean(axis=0) if len(around) else pixels.reshape(-1, 3).mean(axis=0)
        result[y0:y1, x0:x1] = np.rint(colour)
    return result
