"""Copy-Paste (Ghiasi et al., 2020, arXiv:2012.07177): objects of one picture in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Annotated(NamedTuple):
    """A picture and the objects in it.

    Attributes:
      pixels: uint8[H, W, 3].
      masks: bool[n, H, W], the visible pixels of each object.
      texts: what each is.
    """

    pixels: np.ndarray
    masks: np.ndarray
    texts: tuple[str, ...]


def copy_paste(
    below: Annotated, above: Annotated, chosen: Sequence[int], *, min_visible: float = 0.0
) -> Annotated:
    """Paste some of a picture's objects onto another: M above + (1 - M) below.

    M is the union of the chosen masks. The objects below lose what is covered; one of which no
    pixel is left, or a smaller share than ``min_visible`` of what was seen of it, is none any more.
    What a caption says of the picture changes with it: join the texts that come out.

    Args:
      below: what is pasted on.
      above: of the same size.
      chosen: which of its objects.
      min_visible: see above.

    Raises:
      ValueError: pictures of different sizes.
    """
    if below.pixels.shape != above.pixels.shape:
        raise ValueError(
            f"pictures of {below.pixels.shape} and {above.pixels.shape} can't be pasted: resize one"
        )
    pasted = above.masks[list(chosen)]
    union = np.asarray(pasted.any(axis=0))
    pixels = np.where(union[..., None], above.pixels, below.pixels)
    left = below.masks & ~union
    areas, before = left.sum((1, 2)), below.masks.sum((1, 2))
    stays = (areas > 0) & (areas >= min_visible * before)
    texts = tuple(text for text, stay in zip(below.texts, stays, strict=True) if stay)
    masks = np.concatenate([left[stays], pasted])
    return Annotated(pixels, masks, texts + tuple(above.texts[i] for i in chosen))


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The boxes around masks.

    Args:
      masks: bool[n, H, W], none of them empty.

    Returns:
      float64[n, 4], (x0, y0, x1, y1) in [0, 1].
    """
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4))
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes / [width, height, width, height]


def object_mask(pixels: np.ndarray, white: int = 250) -> np.ndarray:
    """The object on a white ground: bool[H, W].

    Ground is what is white (every channel at least ``white``) in a straight line to an edge; a
    picture of another ground is all object.

    Args:
      pixels: uint8[H, W, 3].
      white: least value of the ground.
    """
    is_white = pixels.min(axis=2) >= white
    ground = np.zeros_like(is_white)
    for axis in (0, 1):
        ground |= np.logical_and.accumulate(is_white, axis=axis)
        ahead = np.flip(is_white, axis)
        ground |= np.flip(np.logical_and.accumulate(ahead, axis=axis), axis)
    return ~ground
