"""Encoders: pure functions of a plain dict of parameters."""

from jaxclip.models import fused_attention, presets
from jaxclip.models.clip import CLIP, build, unit
from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "ImageConfig",
    "TextConfig",
    "build",
    "fused_attention",
    "presets",
    "unit",
]
