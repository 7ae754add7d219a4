"""Pictures as they are stored: checked, and encoded anew only where that is needed."""

from __future__ import annotations

import io

from PIL import Image

from jaxclip.data.decode import decode_mended
from jaxclip.data.record import BadRecord

JPEG_QUALITY = 95


def prepare(
    data: bytes, *, max_pixels: int, max_aspect: float, min_side: int, max_side: int = 0
) -> bytes | BadRecord:
    """Check a picture and make it one that every reader of TFDS data decodes alike.

    JPEG and PNG in grey, palette or RGB with 8 bits stay as they are, byte for byte. All else is
    decoded (transparent parts on white) and encoded anew: as JPEG of quality 95 without chroma
    subsampling if it was JPEG, WebP or AVIF, as PNG otherwise.

    Args:
      data: encoded bytes.
      max_pixels: pictures with more are absurd.
      max_aspect: so are those whose longer side is more than this many times the shorter.
      min_side: and those whose shorter side is below this.
      max_side: longer sides are scaled down to this; 0 = never.

    Returns:
      Encoded bytes, or why they cannot be used.
    """
    found = decode_mended(data, max_pixels=max_pixels, max_aspect=max_aspect, min_side=min_side)
    if isinstance(found, BadRecord):
        return found
    image, data = found
    # Only the header is read here; decode() has seen that it is sound.
    with Image.open(io.BytesIO(data)) as header:
        kind, mode, info = header.format, header.mode, header.info
        animated = getattr(header, "default_image", False)  # which other readers see in its place
    too_large = 0 < max_side < max(image.size)
    plain = mode in ("RGB", "L", "P", "1") and "transparency" not in info and not animated
    # MPO: a JPEG with further pictures behind it, as cameras and telephones write it.
    kind = "JPEG" if kind == "MPO" else kind
    if kind in ("JPEG", "PNG") and plain and not too_large:
        return data
    if too_large:
        scale = max_side / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    if kind in ("JPEG", "WEBP", "AVIF"):
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, format="PNG")
    return buffer.getvalue()
