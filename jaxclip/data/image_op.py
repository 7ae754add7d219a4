"""What an image op is, and the registry of image ops.

There are two kinds of op. *Example ops* (crops, resizes, rotations) take one Pillow image of any
size, *batch ops* (flips, colours) a stack of images of one size. Neither draws random numbers: each
op says how many it needs, and is given that many uniform ones for every example. An augmented image
is a pure function of the image and those numbers, whatever batch it is in.

A new op is a file of :mod:`jaxclip.data.image_ops` that has its name, and is found by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxclip.registry import Registry

ExampleFn = Callable[[Any, np.ndarray], Any]
BatchFn = Callable[[np.ndarray, np.ndarray], np.ndarray]
Size = tuple[int, int]
# (width, height) before, random numbers -> (width, height) after, float64[2, 3] from pixel
# coordinates before to pixel coordinates after.
WhereFn = Callable[[Size, np.ndarray], tuple[Size, np.ndarray]]


class Cut(NamedTuple):
    """A part of a picture at another size.

    Attributes:
      box: (left, top, right, bottom) of the part, in pixels; between them, too.
      size: (width, height) that it gets.
      method: interpolation, as the ops name it.
    """

    box: tuple[float, float, float, float]
    size: Size
    method: str


class Either(NamedTuple):
    """An op in several forms; that one is used in whose form the images are at the time.

    At 224 pixels, changing the form takes longer than many an op.

    Attributes:
      example: for one Pillow image.
      batch: for a stack of images.
      pixels: for one array uint8[H, W, 3], which it must not write to.
      where: what it does to coordinates; None if it moves nothing.
    """

    example: ExampleFn
    batch: BatchFn
    pixels: Callable[[np.ndarray, np.ndarray], np.ndarray]
    where: WhereFn | None = None


@dataclasses.dataclass(frozen=True)
class Moving:
    """An op on one Pillow image that says what it does to coordinates, so that boxes can follow.

    Attributes:
      apply: the op.
      where: what it does to coordinates.
      cut: (size, random numbers) -> the :class:`Cut` that the op is, for a backend that can do it
        while it decodes; None if it is something else.
    """

    apply: ExampleFn
    where: WhereFn
    cut: Callable[[Size, np.ndarray], Cut] | None = None

    def __call__(self, image: Any, u: np.ndarray) -> Any:
        return self.apply(image, u)


def where_of(function: Any) -> WhereFn | None:
    """What an op's function does to coordinates; None if it does not say, or moves nothing."""
    return function.where if isinstance(function, (Moving, Either)) else None


def cut_of(function: Any) -> Callable[[Size, np.ndarray], Cut] | None:
    """What an op's function cuts out; None if it is something else than a cut."""
    return function.cut if isinstance(function, Moving) else None


@dataclasses.dataclass(frozen=True)
class ImageOp:
    """An op of the registry.

    Attributes:
      factory: options -> function; raises ValueError for bad ones.
      level: "example", "batch" or "either".
      draws: uniform numbers it takes for each example.
      keeps_square: whether it leaves an image alone that is already ``size`` x ``size``.
    """

    factory: Callable[..., Any]
    level: str
    draws: int
    keeps_square: bool = False

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.factory(*args, **options)


IMAGE_OPS = Registry("image op", "jaxclip.data.image_ops")


def register(
    name: str, *, level: str, draws: int = 0, keeps_square: bool = False
) -> Callable[[Callable[..., Any]], ImageOp]:
    """Make an op of its factory and put it into the registry; a decorator.

    The factory's parameters are the op's options; each needs a default and a type annotation of
    ``float``, ``int``, ``bool`` or ``str``. One named ``size`` gets the configured image size where
    it is None. The factory returns

    - level "example": ``fn(image: PIL.Image, u: float32[draws]) -> PIL.Image``, in a
      :class:`Moving` if boxes are to follow it;
    - level "batch": ``fn(images: float32[n, 3, H, W], u: float32[n, draws])`` -> the same shape;
      values are in [0, 255] before and after, the argument may be overwritten, and nothing moves;
    - level "either": an :class:`Either` of such functions that do exactly the same.

    Args:
      name: how the op is called in a config.
      level: "example", "batch" or "either".
      draws: uniform random numbers in [0, 1) that it takes for each example.
      keeps_square: whether it leaves an image alone that is already ``size`` x ``size``.
    """
    if level not in ("example", "batch", "either"):
        raise ValueError(f"level={level!r} of op {name!r} must be 'example', 'batch' or 'either'")
    return lambda factory: IMAGE_OPS.register(name, ImageOp(factory, level, draws, keeps_square))
