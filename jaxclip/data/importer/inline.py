"""Pictures in the place of a file's name: as base64, also URL-safe, or as ``data:`` addresses."""

from __future__ import annotations

import base64
import binascii
import urllib.parse

from jaxclip.data.record import BadRecord

# Text that is longer is no file's name.
_LONGEST_NAME = 255
# How JPEG, PNG, GIF and WebP begin in base64; of "/9j/" URL-safe base64 makes "_9j_".
_BEGINNINGS = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR")


def is_inline(text: str) -> bool:
    """Whether a text is a picture rather than the name of its file."""
    text = text.lstrip()
    if text.startswith("data:"):
        return True
    if "." in text[-6:].rstrip():  # the ending of a file
        return False
    begin = text[:_LONGEST_NAME]
    is_sentence = " " in begin or not begin.isascii()
    return (len(text) > len(begin) and not is_sentence) or text.startswith(_BEGINNINGS)


def picture_in(text: str) -> bytes | BadRecord:
    """The bytes of a picture that :func:`is_inline`."""
    text = text.strip()
    head, comma, rest = text.partition(",") if text.startswith("data:") else ("", "", text)
    if comma and not head.endswith(";base64"):
        return urllib.parse.unquote_to_bytes(rest)
    # It may be wrapped into lines, URL-safe, or without its padding.
    plain = "".join(rest.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error):
        return BadRecord("undecodable", f"text that is no base64: {rest[:20]!r}...")
