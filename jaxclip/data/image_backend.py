"""What decodes a picture and cuts the first part out of it: exactly as Pillow does, or fast.

``data.image_backend`` names one. It is part of what a run's pictures are, so a run keeps it.

- ``"pillow"`` decodes whole pictures, and Pillow's ops do the rest.
- ``"fast"`` takes half the CPU time or less: simplejpeg decodes (the same pixels as Pillow), and
  where the chain of ops begins with a cut and a resize, fast_image_resize does it (of photographs
  within one grey level of Pillow, the same bits on any CPU; it resizes rows before columns, Pillow
  the other way round, and each cuts off at black and white in between, so that drawings of hard
  edges can differ by some tens of grey levels beside these). A photograph of
  which at least twice as many pixels are left as the result has is decoded at a half, a quarter or
  an eighth of its size, by its DCT. Decoding ends with the last row that is looked at.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxclip.data import decode as decode_lib
from jaxclip.data import jpeg_header
from jaxclip.data.image_op import Cut, Size
from jaxclip.data.record import BadRecord
from jaxclip.registry import Registry

# Size of a picture -> what the views cut out of it first; empty if one of them needs all of it.
Cuts = Callable[[Size], Sequence[Cut]]


# Bytes that are searched for EXIF data in a file with a header of a strange kind.
_LONGEST_HEADER = 1 << 16
# Rows of a picture that two rows of its colours stand for, at most.
_COLOUR_ROWS = 8
# A shortened file must save more than it takes to make it.
_WORTHWHILE = 0.95
# Pixels on each side that the widest interpolation looks at, in units of the larger pixel.
_SUPPORT = 3.0


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
      pixels: uint8[H, W, 3]; the last rows may be left out. Not to be written to.
      size: (width, height) of the picture as it is stored.
      shrink: how many times larger than ``pixels`` that is: 1, 2, 4 or 8.
    """

    pixels: np.ndarray
    size: Size
    shrink: int = 1


Decode = Callable[[], Picture | BadRecord]


class Backend(Protocol):
    """Decodes, and does the first cut of a chain of ops."""

    # Cuts out of a picture; None: the chain does it.
    cut: Callable[[Picture, Cut], np.ndarray] | None

    def prepare(self, data: bytes, cuts: Cuts) -> Decode:
        """Look at the header and decide what is to be decoded; what is returned does it."""
        ...

    def decode(self, data: bytes, cuts: Cuts) -> Picture | BadRecord:
        """The picture, or why there is none, as :func:`jaxclip.data.decode.decode`."""
        return self.prepare(data, cuts)()

    def is_whole(self, size: Size, largest: int) -> bool:
        """Whether a picture of this size is decoded whole whatever is cut out of it, and so may be
        kept for another time; ``largest`` is the side of the largest view."""
        ...


class Pillow(Backend):
    """Whole pictures by Pillow."""

    cut: Callable[[Picture, Cut], np.ndarray] | None = None

    def prepare(self, data: bytes, cuts: Cuts) -> Decode:
        return functools.partial(_by_pillow, data)

    def is_whole(self, size: Size, largest: int) -> bool:
        return True


def _by_pillow(data: bytes) -> Picture | BadRecord:
    image = decode_lib.decode(data)
    return image if isinstance(image, BadRecord) else Picture(np.asarray(image), image.size)


class Fast(Backend):
    """simplejpeg and fast_image_resize; what they don't know is Pillow's.

    Raises:
      ValueError: one of them is not installed.
    """

    def __init__(self) -> None:
        self._jpeg, self._resizing = _imported()
        self._local = _Tools()

    def prepare(self, data: bytes, cuts: Cuts) -> Decode:
        header = jpeg_header.read(data) if data[:3] == b"\xff\xd8\xff" else None
        size = self._plain_size(data, header)
        if size is None:
            return functools.partial(_by_pillow, data)
        wanted = cuts(size)
        shrink = _shrink(size, wanted)
        height = _height_seen(size, shrink, wanted)
        return functools.partial(self._first_rows, data, header, size, shrink, height)

    def _first_rows(
        self, data: bytes, header: jpeg_header.Header | None, size: Size, shrink: int, height: int
    ) -> Picture | BadRecord:
        short: bytes | bytearray | None = None
        if header is not None and height <= _WORTHWHILE * size[1]:
            short = jpeg_header.shortened(data, header, height)
        if short is None:
            short, height = data, size[1]
        across, down = -(-size[0] // shrink), -(-height // shrink)
        options = {"min_width": across, "min_height": down, "min_factor": 2.0} if shrink > 1 else {}
        # Memory of its own it would fill with zeros first, under the interpreter's lock.
        memory = np.empty(3 * across * down, np.uint8)
        try:
            # Of a shortened file the decoder says that it goes on behind its end.
            pixels = self._jpeg.decode_jpeg(
                short, "RGB", strict=short is data, buffer=memory, **options
            )
        except ValueError:
            # It is strict about garbage between segments, which browsers and Pillow accept. If
            # Pillow finds the file sound, its pixels do, at whatever size.
            return _by_pillow(data)
        return Picture(pixels, size, shrink)

    def _plain_size(self, data: bytes, header: jpeg_header.Header | None) -> Size | None:
        """(width, height) of a grey or YCbCr JPEG within the limits that is as it is to be."""
        if data[:3] != b"\xff\xd8\xff":
            return None
        try:
            height, width, colours, _ = self._jpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        if colours not in ("YCbCr", "Gray") or not decode_lib.is_sane(width, height):
            return None
        end = _LONGEST_HEADER if header is None else header.scan_at
        return None if decode_lib.is_changed(data, end) else (width, height)

    def is_whole(self, size: Size, largest: int) -> bool:
        return min(size) < 2 * largest

    def cut(self, picture: Picture, cut: Cut) -> np.ndarray:
        """uint8[h, w, 3]: a box of a picture at another size."""
        rows, columns, box = _seen(picture.size, picture.shrink, cut)
        height, width = picture.pixels.shape[:2]
        if cut.size == (width, height) == (box.width, box.height):
            return picture.pixels
        # Pixels are copied on their way in: only those that are looked at. Where there are others
        # beside them, NumPy does it without the interpreter's lock.
        seen = picture.pixels[rows, columns]
        local = self._local
        source = local.image(seen.shape[1], seen.shape[0], local.kind, seen.tobytes())
        if local.size != cut.size:
            local.size, local.result = cut.size, local.image(*cut.size, local.kind)
        if cut.method not in local.options:
            local.options[cut.method] = self._resizing.ResizeOptions(_algorithm(cut.method))
        options = local.options[cut.method]
        options.crop_box = box
        local.resizer.resize(source, local.result, options)
        pixels = np.frombuffer(local.result.get_buffer(), np.uint8)  # it gives a copy
        return pixels.reshape(cut.size[1], cut.size[0], 3)


class _Tools(threading.local):
    """What a thread resizes with, again and again."""

    def __init__(self) -> None:
        _, resizing = _imported()
        self.image, self.kind = resizing.ImageData, resizing.PixelType.U8x3
        self.resizer, self.options = resizing.Resizer(), dict[str, Any]()
        self.size: Size = (0, 0)
        self.result: Any = None


@functools.lru_cache(maxsize=1024)  # a cut is asked for before its picture is decoded and after
def _seen(size: Size, shrink: int, cut: Cut) -> tuple[slice, slice, Any]:
    """Rows and columns that a cut looks at, in a picture's smaller version, and its box in them."""
    spans, box = [], []
    for side, start, end, result in zip(size, cut.box[:2], cut.box[2:], cut.size, strict=True):
        # A smaller version's last pixel may stand for fewer than ``shrink``.
        start, length = start / shrink, (end - start) / shrink
        # Rounding must not put the end of the box beyond the picture's.
        length = min(length, side / shrink - start)
        margin = int(_SUPPORT * max(1.0, length / result)) + 2
        first = max(0, int(start) - margin)
        spans.append(slice(first, int(start + length) + margin))
        box.append((start - first, length))
    (left, width), (top, height) = box
    return spans[1], spans[0], _imported()[1].CropBox(left, top, width, height)


def _height_seen(size: Size, shrink: int, cuts: Sequence[Cut]) -> int:
    """Rows of the stored picture, from the top, that cuts look at; all for none."""
    if not cuts:
        return size[1]
    last = max(_seen(size, shrink, cut)[0].stop for cut in cuts)
    # Colours have half the rows or a quarter, and interpolating them looks at one more.
    return min(size[1], -(-(last * shrink + _COLOUR_ROWS) // _COLOUR_ROWS) * _COLOUR_ROWS)


def _shrink(size: Size, cuts: Sequence[Cut]) -> int:
    """The largest of 1, 2, 4, 8 by which a picture may be smaller for all cuts to be at least as
    large as what is made of them."""
    least = 8.0 if cuts else 1.0
    for cut in cuts:
        left, top, right, bottom = cut.box
        least = min(least, (right - left) / cut.size[0], (bottom - top) / cut.size[1])
    return next((factor for factor in (8, 4, 2) if factor <= least), 1)


@functools.cache
def _algorithm(method: str) -> Any:
    _, resizing = _imported()
    if method == "nearest":
        return resizing.ResizeAlg.nearest()
    filters = {
        "box": "box",
        "bilinear": "bilinear",
        "bicubic": "catmull_rom",
        "lanczos": "lanczos3",
    }
    return resizing.ResizeAlg.convolution(resizing.FilterType[filters[method]])


@functools.cache
def _imported() -> tuple[Any, Any]:
    try:
        import cykooz_resizer
        import simplejpeg
    except ImportError as error:
        raise ValueError(
            f"data.image_backend='fast' needs {error.name}, which is not installed; from a clone: "
            "pip install '.[fast]', or set data.image_backend='pillow'"
        ) from error
    return simplejpeg, cykooz_resizer


BACKENDS = Registry("image backend")
BACKENDS.register("pillow", Pillow)
BACKENDS.register("fast", Fast)
