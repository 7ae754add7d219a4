"""The published sizes by name.

Widths and depths: CLIP (Radford et al., 2021, table 19), OpenCLIP (Cherti et al., 2023) for S/32,
S/16, H/14, g/14 and bigG/14, SigLIP (Zhai et al., 2023; Alabdulmohsin et al., 2023 for the
shape-optimised So400m).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxclip.models import conv_presets, sequence_presets
from jaxclip.models.sizes import CLIPConfig, ImageConfig, TextConfig, image_class
from jaxclip.models.variants import VARIANTS
from jaxclip.registry import hint

__all__ = ["LISTED_BY", "CLIPConfig", "ImageConfig", "TextConfig", "get", "image_class", "names"]

# The command that shows all presets, for errors.
LISTED_BY = "jaxclip methods"


def get(name: str) -> CLIPConfig:
    """The configuration of a preset.

    Raises:
      ValueError: there is none of that name; the message names the nearest.
    """
    if name not in _PRESETS:
        near = hint(name, names(), listed_by=LISTED_BY)
        raise ValueError(f"unknown model preset {name!r}{near}")
    return _PRESETS[name]()


def names() -> list[str]:
    """Names of the presets."""
    return sorted(_PRESETS)


def _conv(row: conv_presets.Row) -> Callable[[], CLIPConfig]:
    def make() -> CLIPConfig:
        image = image_class(row.kind)(**row.image)
        width, depth, num_heads = row.text
        text = TextConfig(
            width=width,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=4 * width,
            causal=row.causal,
            mask_padding=row.causal,
            activation=row.text_activation,
        )
        return CLIPConfig(image=image, text=text, embed_dim=row.embed_dim)

    return make


def _clip(
    patch_size: int,
    image: tuple[int, int, int],
    text: tuple[int, int, int],
    embed_dim: int,
    *,
    image_size: int = 224,
    mlp_dim: int | None = None,
    activation: str = "gelu",
) -> Callable[[], CLIPConfig]:
    """CLIP's layout; ``image`` and ``text`` are (width, depth, heads)."""

    def make() -> CLIPConfig:
        width, depth, num_heads = image
        text_width, text_depth, text_heads = text
        return CLIPConfig(
            image=ImageConfig(
                image_size=image_size,
                patch_size=patch_size,
                width=width,
                depth=depth,
                num_heads=num_heads,
                mlp_dim=mlp_dim or 4 * width,
                activation=activation,
            ),
            text=TextConfig(
                width=text_width,
                depth=text_depth,
                num_heads=text_heads,
                mlp_dim=4 * text_width,
                activation=activation,
            ),
            embed_dim=embed_dim,
        )

    return make


def _siglip(
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    image_size: int,
    *,
    context_length: int = 64,
) -> Callable[[], CLIPConfig]:
    """SigLIP's layout: attention pooling, both towers of one shape, sigmoid loss."""

    def make() -> CLIPConfig:
        shape = {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim}
        return CLIPConfig(
            image=ImageConfig(
                image_size=image_size,
                patch_size=patch_size,
                pool="map",
                pre_norm=False,
                patch_bias=True,
                activation="gelu_tanh",
                norm_eps=1e-6,
                projection="none",
                **shape,  # type: ignore[arg-type]
            ),
            text=TextConfig(
                vocab_size=32_000,
                context_length=context_length,
                causal=False,
                pool="final",
                mask_padding=False,
                activation="gelu_tanh",
                norm_eps=1e-6,
                projection="linear_bias",
                **shape,  # type: ignore[arg-type]
            ),
            embed_dim=width,
            logit_scale_init=math.log(10.0),
            logit_bias_init=-10.0,
        )

    return make


def _tiny() -> CLIPConfig:
    """For two CPU cores and 64-pixel images."""
    return CLIPConfig(
        image=ImageConfig(
            image_size=64,
            patch_size=8,
            width=192,
            depth=4,
            num_heads=3,
            mlp_dim=768,
            pool="mean",
            pre_norm=False,
        ),
        text=TextConfig(
            vocab_size=4096,
            context_length=32,
            width=128,
            depth=2,
            num_heads=2,
            mlp_dim=512,
            causal=False,
            pool="mean",
        ),
        embed_dim=256,
    )


# "quickgelu" is the activation of OpenAI's own weights; OpenCLIP's are trained with GELU.
_PRESETS: dict[str, Callable[[], CLIPConfig]] = {
    "tiny": _tiny,
    "vit_s32": _clip(32, (384, 12, 6), (384, 12, 6), 384),
    "vit_s16": _clip(16, (384, 12, 6), (384, 12, 6), 384),
    "vit_b32": _clip(32, (768, 12, 12), (512, 12, 8), 512),
    "vit_b32_quickgelu": _clip(32, (768, 12, 12), (512, 12, 8), 512, activation="quick_gelu"),
    "vit_b16": _clip(16, (768, 12, 12), (512, 12, 8), 512),
    "vit_b16_quickgelu": _clip(16, (768, 12, 12), (512, 12, 8), 512, activation="quick_gelu"),
    "vit_l14": _clip(14, (1024, 24, 16), (768, 12, 12), 768),
    "vit_l14_quickgelu": _clip(14, (1024, 24, 16), (768, 12, 12), 768, activation="quick_gelu"),
    "vit_l14_336": _clip(14, (1024, 24, 16), (768, 12, 12), 768, image_size=336),
    "vit_l14_336_quickgelu": _clip(
        14, (1024, 24, 16), (768, 12, 12), 768, image_size=336, activation="quick_gelu"
    ),
    "vit_h14": _clip(14, (1280, 32, 16), (1024, 24, 16), 1024),
    "vit_g14": _clip(14, (1408, 40, 16), (1024, 24, 16), 1024, mlp_dim=6144),
    "vit_bigg14": _clip(14, (1664, 48, 16), (1280, 32, 20), 1280, mlp_dim=8192),
    "siglip_b16": _siglip(16, 768, 12, 12, 3072, 224),
    "siglip_b16_256": _siglip(16, 768, 12, 12, 3072, 256),
    "siglip_b16_384": _siglip(16, 768, 12, 12, 3072, 384),
    "siglip_l16_256": _siglip(16, 1024, 24, 16, 4096, 256),
    "siglip_l16_384": _siglip(16, 1024, 24, 16, 4096, 384),
    # The released model at 224 pixels reads 16 tokens, the one at 384 pixels 64. The latter's
    # patches of 14 leave the last 6 of its 384 pixels unread: 378.
    "siglip_so400m_14": _siglip(14, 1152, 27, 16, 4304, 224, context_length=16),
    "siglip_so400m_14_384": _siglip(14, 1152, 27, 16, 4304, 378),
}


def _variant(base: str, changes: Mapping[str, Any]) -> Callable[[], CLIPConfig]:
    def make() -> CLIPConfig:
        config = get(base).to_dict()
        for key, value in changes.items():
            config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
        return CLIPConfig.from_dict(config)

    return make


_PRESETS |= {name: _variant(*variant) for name, variant in VARIANTS.items()}
_PRESETS |= {
    name: functools.partial(CLIPConfig.from_dict, row)
    for name, row in sequence_presets.ROWS.items()
}
_PRESETS |= {name: _conv(row) for name, row in conv_presets.ROWS.items()}
