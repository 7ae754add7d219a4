"""Chains of ops and the fields of augmented views that several methods share."""

from __future__ import annotations

from jaxclip import fields as field_lib

# As in SLIP and clip-rocket (arXiv:2305.08675); the blur is for 224 pixels.
STRONG_IMAGE_OPS = (
    "random_resized_crop(0.08, 1.0)|color_jitter(0.4, 0.4, 0.4, 0.1, p=0.8)|grayscale(0.2)"
    "|blur(2.0, 0.5)|flip"
)


def image_views(count: int, ops: str) -> dict[str, field_lib.Field]:
    """``view1/image`` to ``view<count>/image`` by one chain, each with its own draws."""
    return {f"view{k}/image": field_lib.View(ops=ops) for k in range(1, count + 1)}


def text_views(count: int, ops: str) -> dict[str, field_lib.Field]:
    """``texts1/text`` to ``texts<count>/text`` by one chain, each with its own draws."""
    return {f"texts{k}/text": field_lib.Captions(ops=ops) for k in range(1, count + 1)}
