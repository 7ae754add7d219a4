"""Configurations of the encoders, and the published sizes by name.

Widths and depths: CLIP (Radford et al., 2021, table 19), OpenCLIP (Cherti et al., 2023) for S/32,
S/16, H/14, g/14 and bigG/14, SigLIP (Zhai et al., 2023; Alabdulmohsin et al., 2023 for the
shape-optimised So400m).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxclip.models import conv_presets
from jaxclip.models.image_towers import TOWERS
from jaxclip.registry import hint


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """A Vision Transformer.

    Attributes:
      kind: ``"vit"``; for other towers see :mod:`jaxclip.models.image_towers`.
      image_size: side of the square input, pixels.
      patch_size: side of a patch; the stem reduces the image by this factor.
      stem: ``"patch"`` (one linear map a patch), ``"conv"`` (see ``stem_widths``), or
        ``"conv_bn"``: the same maps without residual convolutions, each but the last followed by a
        batch norm on frozen statistics and the activation (MobileCLIP-B).
      stem_widths: channels after each stage of a convolutional stem. The first stage maps patches
        of ``patch_size / 2^(n-1)`` pixels linearly, every further one halves the grid; between
        them come residual 3x3 convolutions.
      stem_depth: residual convolutions after each stage of the stem.
      width: channels of the Transformer.
      depth: number of its blocks.
      num_heads: attention heads.
      mlp_dim: hidden width of the MLPs.
      pool: ``"cls"`` (class token), ``"mean"`` or ``"map"`` (attention pooling).
      positions: ``"learned"`` or ``"sincos"`` (fixed, 2-d).
      class_position: whether the class token has a learned position, too.
      pre_norm: layer norm before the first block (CLIP's ``ln_pre``).
      patch_bias: bias of the patch embedding.
      activation: ``"gelu"``, ``"gelu_tanh"`` or ``"quick_gelu"``.
      norm_eps: epsilon of the layer norms.
      projection: ``"linear"`` (no bias) or ``"linear_bias"`` to the joint space, or ``"none"`` if
        ``width`` is its size.
      num_registers: learned tokens behind the class token that no output reads (Darcet et al.,
        2024, arXiv:2309.16588).
      dropout: in training, share of what attention and MLP of a block add that is zeroed.
      patch_dropout: in training, share of the patches that do not run (FLIP).
      first_layer: ``"plain"``, or ``"tract"`` for TrAct's gradient of the patch embedding
        (:mod:`jaxclip.models.tract`).
      tract_lambda: its ridge.
    """

    image_size: int = 224
    patch_size: int = 16
    stem: str = "patch"
    stem_widths: tuple[int, ...] = ()
    stem_depth: int = 1
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    pool: str = "cls"
    positions: str = "learned"
    pre_norm: bool = True
    patch_bias: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-5
    projection: str = "linear"
    num_registers: int = 0
    dropout: float = 0.0
    patch_dropout: float = 0.0
    first_layer: str = "plain"
    tract_lambda: float = 0.1
    class_position: bool = True
    kind: str = "vit"

    def __post_init__(self) -> None:
        _choice("image.first_layer", self.first_layer, ("plain", "tract"))
        _rate("image.dropout", self.dropout)
        _rate("image.patch_dropout", self.patch_dropout)
        if self.num_registers < 0:
            raise ValueError(f"model.image.num_registers={self.num_registers} is negative; use 0")
        if self.first_layer == "tract" and (self.stem != "patch" or not self.tract_lambda > 0):
            raise ValueError(
                "model.image.first_layer='tract' needs model.image.stem='patch' and a tract_lambda "
                f"above 0, got stem={self.stem!r}, tract_lambda={self.tract_lambda}"
            )
        _choice("image.kind", self.kind, ("vit",))
        _choice("image.stem", self.stem, ("patch", "conv", "conv_bn"))
        _choice("image.pool", self.pool, ("cls", "mean", "map"))
        _choice("image.positions", self.positions, ("learned", "sincos"))
        _choice("image.projection", self.projection, ("linear", "linear_bias", "none"))
        _choice("image.activation", self.activation, ("gelu", "gelu_tanh", "quick_gelu"))
        if self.image_size % self.patch_size:
            fits = [p for p in (4, 8, 14, 16, 32) if self.image_size % p == 0]
            raise ValueError(
                f"model.image.patch_size={self.patch_size} does not divide image_size="
                f"{self.image_size}; use {' or '.join(map(str, fits)) or 'another image size'}"
            )
        _heads("image", self.width, self.num_heads)
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(
                f"model.image.positions='sincos' needs a width divisible by 4, not {self.width}"
            )
        if self.stem != "patch":
            halvings = 2 ** (len(self.stem_widths) - 1) if self.stem_widths else 0
            if not halvings or self.patch_size % halvings:
                raise ValueError(
                    f"model.image.stem_widths={self.stem_widths} halve the grid "
                    f"{len(self.stem_widths) - 1} times, which patch_size={self.patch_size} does "
                    "not allow"
                )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def has_statistics(self) -> bool:
        """Whether there are batch norms, whose statistics are never trained."""
        return self.stem == "conv_bn"

    @property
    def summary(self) -> str:
        """The tower in one line."""
        return (
            f"{self.image_size} px in patches of {self.patch_size}, width {self.width}, depth "
            f"{self.depth}, {self.num_heads} heads, MLP {self.mlp_dim}, pool {self.pool}, "
            f"{self.activation}"
        )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text Transformer.

    Attributes:
      vocab_size: number of tokens.
      pad_id: the token that is padding. Where it is not 0 it also ends a text (SigLIP's 1), which
        then reaches to the first of them.
      context_length: longest sequence.
      width, depth, num_heads, mlp_dim: as in :class:`ImageConfig`.
      causal: mask the future (CLIP); else bidirectional (SigLIP).
      pool: ``"last"`` (the last token of the text: CLIP's end of text), ``"final"`` (the
        last place, padding or not: SigLIP), ``"mean"`` (over tokens) or ``"map"``.
      mask_padding: keep padding out of bidirectional attention and pooling (SigLIP does not).
      activation, norm_eps: as in :class:`ImageConfig`.
      projection: ``"linear"`` (no bias, CLIP) or ``"linear_bias"`` (SigLIP).
      dropout: as in :class:`ImageConfig`.
    """

    vocab_size: int = 49_408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    causal: bool = True
    pool: str = "last"
    mask_padding: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-5
    projection: str = "linear"
    dropout: float = 0.0
    pad_id: int = 0

    def __post_init__(self) -> None:
        _rate("text.dropout", self.dropout)
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(
                f"model.text.pad_id={self.pad_id} must be a token, 0 to vocab_size - 1 = "
                f"{self.vocab_size - 1}"
            )
        _choice("text.pool", self.pool, ("last", "final", "mean", "map"))
        _choice("text.projection", self.projection, ("linear", "linear_bias"))
        _choice("text.activation", self.activation, ("gelu", "gelu_tanh", "quick_gelu"))
        _heads("text", self.width, self.num_heads)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two encoders and the joint space.

    Attributes:
      image: the image tower: :class:`ImageConfig`, or the sizes of another kind.
      text: the text tower.
      embed_dim: size of the joint space.
      logit_scale_init: initial ``logit_scale``, the log of the multiplier.
      logit_bias_init: initial ``logit_bias``, or None for a model without one.
    """

    image: ImageConfig | Any = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    embed_dim: int = 512
    logit_scale_init: float = math.log(1 / 0.07)
    logit_bias_init: float | None = None

    def __post_init__(self) -> None:
        if getattr(self.image, "projection", "") == "none" and self.image.width != self.embed_dim:
            raise ValueError(
                f"model.image.projection='none' needs model.image.width={self.image.width} equal "
                f"to model.embed_dim={self.embed_dim}"
            )

    @property
    def whole_batch(self) -> tuple[str, ...]:
        """Options with which a gradient needs the whole batch in one pass through a tower."""
        tract = getattr(self.image, "first_layer", "") == "tract"
        return ("model.image.first_layer='tract'",) if tract else ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict; tuples become lists, so that it survives JSON."""
        return {
            key: {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> CLIPConfig:
        """Inverse of :meth:`to_dict`; missing fields take their defaults.

        Raises:
          ValueError: an unknown field, naming the nearest one.
        """
        fields = dict(config)
        _known("model", fields, cls)
        kind = dict(fields.get("image", {})).get("kind", "vit")
        for name, tower in (("image", image_class(kind)), ("text", TextConfig)):
            given = dict(fields.get(name, {}))
            _known(f"model.{name}", given, tower)
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            fields[name] = tower(**given)
        return cls(**fields)


def image_class(kind: str) -> type:
    """The dataclass of the sizes of a kind of image tower.

    Raises:
      ValueError: there is no such kind; the message names the nearest.
    """
    if kind == "vit":
        return ImageConfig
    if kind not in TOWERS.names() and ":" not in str(kind):
        raise ValueError(
            f"unknown model.image.kind {kind!r}{hint(str(kind), ['vit', *TOWERS.names()])}"
        )
    found: type = TOWERS.get(kind).config_class
    return found


def get(name: str) -> CLIPConfig:
    """The configuration of a preset.

    Raises:
      ValueError: there is none of that name; the message names the nearest.
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model preset {name!r}{hint(name, names())}")
    return _PRESETS[name]()


def names() -> list[str]:
    """Names of the presets."""
    return sorted(_PRESETS)


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"model.{name}={value!r}; use {', '.join(map(repr, known))}")


def _rate(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"model.{name}={value}; use a rate from 0 (none) to below 1")


def _heads(tower: str, width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"model.{tower}.num_heads={num_heads} does not divide width={width}")


def _known(section: str, given: Mapping[str, Any], cls: type) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise ValueError(f"unknown field {section}.{key}{hint(key, known)}")


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

_PRESETS |= {name: _conv(row) for name, row in conv_presets.ROWS.items()}
