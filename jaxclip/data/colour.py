"""Colours of pictures that bring a colour profile (ICC), as browsers show them: in sRGB.

Photographs of telephones are in Display P3, those of cameras often in Adobe RGB, and CMYK has no
colours without a profile. Most profiles are sRGB's: what they do to some colours tells them, not
their name, and pictures with them are left as they are.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from jaxclip.data import coded_colour

# Grey levels by which a profile's colours may differ from sRGB's and still be taken for those.
_SAME = 2
# Bytes of a profile; those of printing presses have up to three million. Some are kept in memory.
_LONGEST = 4 << 20


def to_srgb(image: Image.Image, code: coded_colour.Code | None = None) -> Image.Image:
    """A loaded picture in the colours of sRGB; unchanged if nothing says of others.

    Args:
      image: of 8 bits.
      code: goes before its profile.
    """
    profile = image.info.pop("icc_profile", None)
    if not profile and code is None:
        return image
    # The colour that stands for nothing is one of before, and no profile is about alpha.
    keyed = image.convert("RGBA") if has_alpha(image) else None
    if code is not None:
        result = coded_colour.to_srgb((keyed or image).convert("RGB"), code)
    else:
        mode = "RGB" if image.mode == "P" else image.mode
        transform = _transform_of(profile, mode)
        if transform is None:
            return image
        result = transform.apply((keyed or image).convert(_mode_for(profile, mode)))
    if keyed is not None:
        result.putalpha(keyed.getchannel("A"))
    # What is made of it must not be converted a second time, nor have a colour for nothing.
    result.info = {}
    return result


def is_srgb(profile: bytes | None, mode: str) -> bool:
    """Whether a picture with a profile, or none, is in the colours of sRGB as it is."""
    return _transform_of(profile, mode) is None


def has_alpha(image: Image.Image) -> bool:
    """Whether one sees through some of a picture."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _transform_of(profile: bytes | None, mode: str) -> Any:
    """As :func:`_transform`; None also for no profile, and for one that is no profile's size."""
    if not profile or len(profile) > _LONGEST:
        return None
    wanted = _mode_for(profile, mode)
    return _transform(profile, wanted) if wanted else None


def _mode_for(profile: bytes, mode: str) -> str:
    """The mode in which a profile is to be applied to a picture; empty if it has no use for it.

    Greys are also colours, but there is no grey profile of colours.
    """
    of = profile[16:20]
    if mode in ("1", "L", "LA", "La"):
        return {b"GRAY": "L", b"RGB ": "RGB"}.get(of, "")
    if mode in ("RGB", "RGBA", "RGBX", "RGBa"):
        return "RGB" if of == b"RGB " else ""
    return "CMYK" if (mode, of) == ("CMYK", b"CMYK") else ""


class _Greys:
    """A transform of greys as a table of all 256: pixel by pixel it takes ten times as long."""

    def __init__(self, transform: Any):
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        self._colours = transform.apply(ramp).tobytes()

    def apply(self, image: Image.Image) -> Image.Image:
        """A picture of greys in RGB."""
        indexed = image.copy()
        indexed.putpalette(self._colours)
        return indexed.convert("RGB")


@functools.lru_cache(maxsize=64)  # pictures of one camera have the same profile
def _transform(profile: bytes, mode: str) -> Any:
    """A transform to sRGB; None where there is none, or it would change nothing."""
    try:
        from PIL import ImageCms

        transform: Any = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode,
            "RGB", renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Of greys a table of 33 would be made, too coarse for the dark ones.
            flags=ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE,
        )  # fmt: skip
        if mode == "CMYK":
            return transform
        if mode == "L":
            transform = _Greys(transform)
        steps = np.arange(0, 256, 51)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3).astype(np.uint8)
        before = Image.fromarray(colours).convert(mode)
        after = transform.apply(before)
        change = np.asarray(after.convert("RGB"), int) - np.asarray(before.convert("RGB"), int)
        return transform if np.abs(change).max() > _SAME else None
    except Exception:  # a profile that is damaged, or of another kind of colours: it says nothing
        return None
