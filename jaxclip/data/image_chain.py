"""Chains of image ops: built from what a config writes, run on a batch of pictures.

A chain of ops is written ``"random_resized_crop(0.6, 1.0)|flip|color_jitter(hue=0.1)"``, or as a
list of such strings or of mappings ``{"op": "flip", "p": 0.5}``, see :mod:`.op_syntax`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxclip.data import op_syntax
from jaxclip.data.image_op import IMAGE_OPS, Cut, ExampleFn, Size, cut_of, where_of
from jaxclip.data.op_syntax import Spec

_EXAMPLE = "random_resized_crop(0.6, 1.0)|flip"


@dataclasses.dataclass(frozen=True)
class Chain:
    """A built chain of ops.

    Attributes:
      specs: the ops as written, with their complete options.
      steps: (level, function, first uniform, one past the last) of each op.
      num_draws: uniform numbers needed for each example.
      image_size: side of the images that come out.
      keeps_square: whether the chain does nothing to images of the final size.
      resize: what is done to images that do not have the final size in the end.
    """

    specs: tuple[Spec, ...]
    steps: tuple[tuple[str, Any, int, int], ...]
    num_draws: int
    image_size: int
    keeps_square: bool
    resize: ExampleFn

    @functools.cached_property
    def _begins(self) -> tuple[Callable[[Size, np.ndarray], Cut] | None, int, int]:
        """The first op as a cut, if it is one, and the draws that it takes."""
        _, function, first, last = (*self.steps, ("example", self.resize, 0, 0))[0]
        return cut_of(function), first, last

    @property
    def cuts_first(self) -> bool:
        """Whether the first op is a cut."""
        return self._begins[0] is not None

    @property
    def has_planes(self) -> bool:
        """Whether an op takes a stack of images, as float32."""
        return any(level == "batch" for level, *_ in self.steps)

    def first_cut(self, size: Size, u: np.ndarray) -> Cut | None:
        """What is cut out of a picture of this size first, if the chain begins with that."""
        cut, first, last = self._begins
        return None if cut is None else cut(size, u[first:last])

    def __call__(
        self,
        images: Sequence[np.ndarray],
        u: np.ndarray,
        *,
        first_done: bool = False,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run the ops.

        Args:
          images: n arrays uint8[H, W, 3], or uint8[n, H, W, 3].
          u: float32[n, num_draws], uniform in [0, 1).
          first_done: whether the images are what :meth:`first_cut` says already.
          out: uint8[n, image_size, image_size, 3] to write the result to.

        Returns:
          uint8[n, image_size, image_size, 3].
        """
        final = (self.image_size, self.image_size, 3)
        arrays = self.apply(images, u, first_done=first_done)
        if isinstance(arrays, np.ndarray) and out is None and arrays.shape[1:] == final:
            return arrays
        made = np.empty((len(arrays), *final), np.uint8) if out is None else out
        for array, row in zip(arrays, made, strict=True):
            if array.shape == final:
                _copy(array, row)
            else:
                image = Image.fromarray(_packed(array))
                row[...] = np.asarray(self.resize(image, np.empty(0, np.float32)))
        return made

    def apply(
        self, images: Sequence[np.ndarray], u: np.ndarray, *, first_done: bool = False
    ) -> Sequence[np.ndarray] | np.ndarray:
        """The ops alone, without the final resize: uint8[H, W, 3] each, of any size."""
        state = _State(images)
        for level, function, first, last in self.steps[first_done:]:
            if level == "either":
                level = state.form
                function = getattr(function, level)
            if level == "pixels":
                state.pixels = [
                    function(array, row)
                    for array, row in zip(state.pixels, u[:, first:last], strict=True)
                ]
            elif level == "batch":
                state.planes = [
                    (rows, function(planes, u[rows, first:last])) for rows, planes in state.planes
                ]
            else:
                draws = u[:, first:last]
                state.images = [
                    function(image, row) for image, row in zip(state.images, draws, strict=True)
                ]
        return state.arrays()

    def check_moves(self) -> None:
        """Raise ValueError if boxes can't follow one of the ops."""
        for spec, (level, function, _, _) in zip(self.specs, self.steps, strict=True):
            if level == "example" and where_of(function) is None:
                raise ValueError(
                    f"image op {spec.name!r} does not say where it puts a box; make it return an "
                    "image_op.Moving, or leave it out of the chain"
                )

    def boxes(
        self, size: Size, boxes: np.ndarray, u: np.ndarray, *, min_visible: float = 0.0
    ) -> np.ndarray:
        """Where boxes of one picture are after the ops.

        Args:
          size: (width, height) of the picture before.
          boxes: float[n, 4], (x0, y0, x1, y1) in [0, 1] of the picture before.
          u: float32[num_draws], the numbers that the picture's ops are given.
          min_visible: share of a box's area that must be left in the picture.

        Returns:
          float32[n, 4] in [0, 1] of the picture that comes out: the smallest upright box around
          each, cut at the border; all zero for one that is out of the picture.
        """
        corners = np.asarray(boxes, np.float64)[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 4, 2)
        corners = corners * size
        for _, function, first, last in self.steps:
            where = where_of(function)
            if where is not None:
                size, matrix = where(size, u[first:last])
                corners = corners @ matrix[:, :2].T + matrix[:, 2]
        whole = corners.min(axis=1) / size, corners.max(axis=1) / size
        low, high = (np.clip(each, 0.0, 1.0) for each in whole)
        inside = (high > low).all(axis=1, keepdims=True)
        area, left = (np.prod(b - a, axis=1, keepdims=True) for a, b in (whole, (low, high)))
        inside &= left >= min_visible * area * (1.0 - 1e-9)
        return np.where(inside, np.concatenate([low, high], axis=1), 0.0).astype(np.float32)


class _State:
    """Images on their way through a chain, in the form that the next op wants them in."""

    def __init__(self, images: Sequence[np.ndarray]):
        self._pixels: Any = images
        self._images: list[Any] | None = None
        self._planes: list[tuple[Any, np.ndarray]] | None = None

    @property
    def form(self) -> str:
        """What the images are now: "batch" for planes, "example" or "pixels"."""
        if self._planes is not None:
            return "batch"
        return "pixels" if self._images is None else "example"

    @property
    def pixels(self) -> Any:
        """uint8[H, W, 3] each."""
        return self.arrays()

    @pixels.setter
    def pixels(self, arrays: Sequence[np.ndarray]) -> None:
        self._pixels, self._images, self._planes = arrays, None, None

    @property
    def images(self) -> list[Any]:
        """One Pillow image each."""
        if self._images is None:
            self._images = [Image.fromarray(_packed(each)) for each in self.arrays()]
            self._planes = None
        return self._images

    @images.setter
    def images(self, images: list[Any]) -> None:
        self._images = images

    @property
    def planes(self) -> list[tuple[Any, np.ndarray]]:
        """(rows, float32[len(rows), 3, H, W]) for each size that occurs."""
        if self._planes is None:
            arrays, self._images = self.arrays(), None
            shapes = {array.shape for array in arrays}
            self._planes = []
            for shape in sorted(shapes):
                rows = [row for row, array in enumerate(arrays) if array.shape == shape]
                planes = np.empty((len(rows), 3, *shape[:2]), np.float32)
                for plane, row in zip(planes, rows, strict=True):
                    plane[...] = arrays[row].transpose(2, 0, 1)
                self._planes.append((rows if len(shapes) > 1 else slice(None), planes))
        return self._planes

    @planes.setter
    def planes(self, planes: list[tuple[Any, np.ndarray]]) -> None:
        self._planes = planes

    def arrays(self) -> Sequence[np.ndarray] | np.ndarray:
        """uint8[H, W, 3] each; one array if all have the same size."""
        if self._images is not None:
            return [np.asarray(image) for image in self._images]
        if self._planes is None:
            return self._pixels
        if len(self._planes) == 1:
            return _interleaved(self._planes[0][1])
        arrays: dict[int, np.ndarray] = {}
        for rows, planes in self._planes:
            arrays.update(zip(rows, _interleaved(planes), strict=True))
        return [arrays[row] for row in range(len(arrays))]


def _interleaved(planes: np.ndarray) -> np.ndarray:
    """uint8[n, H, W, 3] out of float32[n, 3, H, W], rounded."""
    count, _, height, width = planes.shape
    rounded = np.rint(planes, out=planes).astype(np.uint8)
    pixels = np.empty((count, height, width, 3), np.uint8)
    for channel in range(3):  # far faster than one transposing copy
        pixels[..., channel] = rounded[:, channel]
    return pixels


def _copy(pixels: np.ndarray, out: np.ndarray) -> None:
    """Copy uint8[H, W, 3], whose pixels may lie apart or in another order, to memory of its own."""
    if pixels.flags.c_contiguous:
        out[...] = pixels
    else:
        for channel in range(3):  # three times as fast as one copy
            out[..., channel] = pixels[..., channel]


def _packed(pixels: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] whose pixels are neighbours."""
    if pixels.flags.c_contiguous:
        return pixels
    packed = np.empty(pixels.shape, np.uint8)
    _copy(pixels, packed)
    return packed


def build(ops: str | Sequence[Any], image_size: int) -> Chain:
    """Parse and check a chain of ops.

    A final resize to ``image_size`` is added, which does nothing where images already have it.

    Args:
      ops: the chain as string or list; see the module docstring.
      image_size: side of the images that come out.

    Returns:
      The chain.

    Raises:
      ValueError: bad syntax, an unknown op or option (naming the nearest), or an option of the
        wrong type or out of range.
    """
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1")
    specs = [op_syntax.complete(spec, IMAGE_OPS, {"size": image_size}) for spec in parse(ops)]
    steps: list[tuple[str, Any, int, int]] = []
    draws = 0
    for spec in specs:
        op = IMAGE_OPS.get(spec.name)
        steps.append((op.level, op_syntax.make(spec, IMAGE_OPS), draws, draws + op.draws))
        draws += op.draws
    keeps_square = all(
        IMAGE_OPS.get(spec.name).keeps_square and spec.options.get("size", image_size) == image_size
        for spec in specs
    )
    resize = IMAGE_OPS.get("resize").factory(size=image_size)
    return Chain(tuple(specs), tuple(steps), draws, image_size, keeps_square, resize)


def parse(ops: str | Sequence[Any]) -> list[Spec]:
    """Parse a chain of ops, with positional arguments resolved to option names.

    Raises:
      ValueError: bad syntax, or an unknown op or option, naming the nearest.
    """
    IMAGE_OPS.names()  # imports the package, which registers the ops that share a file
    return op_syntax.parse(ops, IMAGE_OPS, _EXAMPLE)
