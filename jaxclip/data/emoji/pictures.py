"""Pictures out of the packages: found by code point or by name, drawn at one size on white.

All are opaque RGB: transparency would only tell a model where the artist's outline is, and encoders
have no use for a fourth channel. They are stored as JPEG (quality 90, full chroma resolution), a
third smaller than PNG at this size, which keeps the package small.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxclip.data.emoji import IMAGE_SIZE

JPEG_QUALITY = 90
# Vector pictures are drawn this much larger and averaged down: smoother than the renderer's own
# anti-aliasing, and thin lines keep their weight.
_SUPERSAMPLING = 4

# Fluent's file names follow the CLDR names of its time; these ideas have been renamed since, or
# Fluent never followed.
_FLUENT_ALIASES = {
    "black bird": "blackbird",
    "deaf man": "man-deaf",
    "deaf person": "person-deaf",
    "deaf woman": "woman-deaf",
    "elf": "person-elf",
    "enraged face": "pouting-face",
    "face with crossed-out eyes": "knocked-out-face",
    "fairy": "person-fairy",
    "genie": "person-genie",
    "keycap: #": "keycap-hashtag",
    "keycap: *": "keycap-asterisk",
    "mage": "person-mage",
    "man: blond hair": "man-blonde-hair",
    "men with bunny ears": "man-with-bunny-ears",
    "men wrestling": "man-wrestling",
    "mermaid": "woman-merpeople",
    "merman": "man-merpeople",
    "merperson": "person-merpeople",
    "people with bunny ears": "person-with-bunny-ears",
    "people wrestling": "person-wrestling",
    "person: blond hair": "person-blonde-hair",
    "phoenix": "phoenix-bird",
    "red triangle pointed up": "red-triangle",
    "smiling face with open hands": "hugging-face",
    "stuffed flatbread": "stuffedbread",
    "superhero": "person-superhero",
    "supervillain": "person-supervillain",
    "vampire": "person-vampire",
    "woman: blond hair": "woman-blonde-hair",
    "women with bunny ears": "woman-with-bunny-ears",
    "women wrestling": "woman-wrestling",
    "zombie": "person-zombie",
}

_FOLD = str.maketrans("ñãéåçôíáú", "naeacoiau", ".'\u2019\u201c\u201d")


def hexcode_key(hexcode: str) -> str:
    """Code points in lower case without the variation selector, which sources write or not."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def fluent_file(name: str, files: Iterable[str]) -> str | None:
    """File stem of a Fluent picture in its default skin tone.

    Args:
      name: CLDR short name.
      files: stems of all Fluent pictures (a container with fast ``in``).

    Returns:
      The stem, None if Fluent has no such picture.
    """
    folded = name.lower().translate(_FOLD)
    stem = _FLUENT_ALIASES.get(name) or re.sub(r"[^a-z0-9]+", "-", folded).strip("-")
    return next((stem + end for end in ("", "-default") if stem + end in files), None)


def from_png(data: bytes) -> np.ndarray:
    """Decode a picture and lay it on white.

    Returns:
      uint8[size, size, 3].
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _square(_on_white(image), IMAGE_SIZE)


def from_svg(data: bytes) -> np.ndarray:
    """Draw a vector picture and lay it on white.

    Returns:
      uint8[size, size, 3].

    Raises:
      ImportError: resvg-py, needed for building only, is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("drawing SVG needs resvg-py: pip install resvg-py") from error
    from PIL import Image

    side = IMAGE_SIZE * _SUPERSAMPLING
    png = resvg_py.svg_to_bytes(
        svg_string=data.decode("utf-8"), width=side, height=side, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(png)) as image:
        large = _square(_on_white(image), side)
    # Averaging after compositing on white is averaging with premultiplied alpha.
    blocks = large.reshape(IMAGE_SIZE, _SUPERSAMPLING, IMAGE_SIZE, _SUPERSAMPLING, 3)
    return np.round(blocks.mean((1, 3), dtype=np.float64)).astype(np.uint8)


def encode(picture: np.ndarray) -> bytes:
    """Encode uint8[H, W, 3] as it is stored."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(
        buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True
    )
    return buffer.getvalue()


def near_duplicates(pictures: Mapping[str, np.ndarray], threshold: float) -> list[tuple[str, str]]:
    """Pairs of pictures that look alike at half their size.

    Args:
      pictures: uint8[S, S, 3] by key.
      threshold: root mean square difference below which two are alike; white to black is 1.

    Returns:
      Pairs of keys.
    """
    keys = sorted(pictures)
    if not keys:
        return []
    stack = np.stack([pictures[key] for key in keys]).astype(np.float64) / 255.0
    n, side = stack.shape[0], stack.shape[1] // 2
    small = stack.reshape(n, side, 2, side, 2, 3).mean((2, 4)).reshape(n, -1)
    # |a - b|^2 = |a|^2 + |b|^2 - 2ab, in float64, where cancellation leaves about 1e-7.
    norms = np.sum(small * small, axis=1)
    pairs = []
    for start in range(0, n, 256):
        rows = slice(start, start + 256)
        squared = (norms[rows, None] + norms[None, :] - 2.0 * small[rows] @ small.T) / len(small[0])
        first, second = np.nonzero(np.triu(squared < threshold**2, k=start + 1))
        pairs += [(keys[start + i], keys[j]) for i, j in zip(first, second, strict=True)]
    return pairs


def _on_white(image: Any) -> Any:
    from PIL import Image

    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _square(image: Any, side: int) -> np.ndarray:
    """Fit into a white square without changing the proportions."""
    from PIL import Image

    if max(image.size) != side:
        scale = side / max(image.size)
        size = tuple(max(1, round(length * scale)) for length in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    if image.size != (side, side):
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return np.asarray(image)
