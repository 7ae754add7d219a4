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

# Grey levels by which a profile's colours may differ from sRGB's and still be taken for those.
_SAME = 2
_MODES = ("RGB", "RGBA", "L", "CMYK")
# Bytes of a profile; those of printing presses have up to three million. Some are kept in memory.
_LONGEST = 4 << 20


def to_srgb(image: Image.Image) -> Image.Image:
    """A loaded picture in the colours of sRGB; unchanged if it has no profile, or one of no use."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    transform = _transform_of(profile, image.mode)
    if transform is not None:
        # The colour that stands for nothing is one of before.
        keyed = image.convert("RGBA") if "transparency" in image.info else None
        image = transform.apply(image)
        if keyed is not None:
            image.putalpha(keyed.getchannel("A"))
    # What is made of it must not be converted a second time.
    image.info.pop("icc_profile", None)
    return image


def is_srgb(profile: bytes | None, mode: str) -> bool:
    """Whether a picture with a profile, or none, is in the colours of sRGB as it is."""
    return _transform_of(profile, mode) is None


def _transform_of(profile: bytes | None, mode: str) -> Any:
    """As :func:`_transform`; None also for no profile, and for one that is no profile's size."""
    return _transform(profile, mode) if profile and len(profile) <= _LONGEST else None


@functools.lru_cache(maxsize=64)  # pictures of one camera have the same profile
def _transform(profile: bytes, mode: str) -> Any:
    """A transform to sRGB; None where there is none, or it would change nothing."""
    if mode not in _MODES:
        return None
    try:
        from PIL import ImageCms

        result = "RGBA" if mode == "RGBA" else "RGB"
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode,
            result, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )  # fmt: skip
        if mode == "CMYK":
            return transform
        steps = np.arange(0, 256, 51)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3).astype(np.uint8)
        before = Image.fromarray(colours).convert(mode)
        after = transform.apply(before)
        change = np.asarray(after.convert("RGB"), int) - np.asarray(before.convert("RGB"), int)
        return transform if np.abs(change).max() > _SAME else None
    except Exception:  # a profile that is damaged, or of another kind of colours: it says nothing
        return None
