"""Encoders: pure functions of a plain dict of parameters."""

from jaxclip.models import fused_attention, presets
from jaxclip.models.attend import Attend, softmax_weights
from jaxclip.models.clip import CLIP, build
from jaxclip.models.features import Features, Insert, Tokens
from jaxclip.models.layers import unit
from jaxclip.models.patch_sequence import PatchSequence
from jaxclip.models.presets import CLIPConfig, ImageConfig, TextConfig

__all__ = [
    "CLIP",
    "Attend",
    "CLIPConfig",
    "Features",
    "ImageConfig",
    "Insert",
    "PatchSequence",
    "TextConfig",
    "Tokens",
    "build",
    "fused_attention",
    "presets",
    "softmax_weights",
    "unit",
]
