"""The sizes and options of a model: one frozen dataclass for each tower, and one for both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxclip.models._size_checks import (
    check_activation,
    check_choice,
    check_cures,
    check_experts,
    check_heads,
    check_image,
    check_rate,
)
from jaxclip.models.image_towers import TOWERS
from jaxclip.models.text_towers import TEXT_TOWERS
from jaxclip.registry import dependent, hint


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
      head_dim: channels of a head; 0 for ``width / num_heads``. Others are what pruning leaves
        (:func:`jaxclip.weights.surgery.remove_masked`).
      mlp_dim: hidden width of the MLPs.
      pool: ``"cls"`` (class token), ``"mean"``, ``"map"`` (attention pooling), or ``"queries"``
        (CoCa in open_clip: a pooler with ``num_queries`` queries that look at all tokens; the
        first is the embedding, the others are the tower's tokens).
      num_queries: of that pooler.
      class_token: a class token where ``pool`` is another (CLIPA, Perception Encoder).
      pool_prefix: whether mean and attention pooling read class and register tokens, too.
      pool_heads, pool_mlp_dim: of the attention pooling; 0 for those of the blocks.
      norm_after_pool: the last norm comes behind the mean, not before it (CLIPA).
      positions: ``"learned"``, ``"sincos"`` (fixed, 2-d) or ``"none"``.
      rope: rotary positions of the patches in every block (:mod:`jaxclip.models.rotary`):
        ``"none"``, ``"yx"`` (EVA-02) or ``"xy"`` (Perception Encoder), which coordinate turns
        the first half of a head's channels.
      rope_grid: patches along a side that rotary coordinates are stretched to; 0: as they are.
      rope_offset: added to rotary coordinates.
      class_position: whether the class token has a learned position, too.
      pre_norm: layer norm before the first block (CLIP's ``ln_pre``).
      patch_bias: bias of the patch embedding.
      activation: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"``, ``"silu"``, or
        ``"sparse(0.7, 1.0)"`` (:mod:`jaxclip.models.sparse_activation`).
      mlp: ``"plain"``, or ``"gated"`` (with ``"silu"``: SwiGLU).
      norm: ``"layer"`` or ``"rms"``.
      norm_eps: epsilon of the norms.
      norm_place: ``"pre"`` (before attention and MLP), or ``"post"`` (of what they add).
      sub_norm: a norm before the output maps of attention and MLP (EVA-02).
      qkv_bias: biases of queries, keys and values: ``"all"``, ``"qv"`` or ``"none"``.
      projection: ``"linear"`` (no bias) or ``"linear_bias"`` to the joint space, or ``"none"`` if
        ``width`` is its size.
      alpha: pictures may have a fourth channel, 0 to 1, that says what to attend to (Alpha-CLIP);
        without, it counts as 1 everywhere.
      max_patches: 0 for square pictures; above, the tower takes pictures of any aspect ratio as
        sequences of at most so many patches (NaFlex), and ``image_size`` is that of its table of
        positions, which is resized to each picture's grid.
      num_registers: learned tokens behind the class token that no output reads (Darcet et al.,
        2024, arXiv:2309.16588).
      dropout: in training, share of what attention and MLP of a block add that is zeroed.
      patch_dropout: in training, share of the patches that do not run (FLIP).
      first_layer: ``"plain"``, or ``"tract"`` for TrAct's gradient of the patch embedding
        (:mod:`jaxclip.models.tract`).
      tract_lambda: its ridge.
      qk_norm: layer norm of each head's queries and keys (Dehghani et al., 2023, arXiv:2302.05442).
      attention_soft_cap: c, attention scores become c tanh(scores / c) (Gemma 2: 50); 0 for none.
      layer_scale: initial gains of what attention and MLP add (Touvron et al., 2021,
        arXiv:2103.17239), 0 among them; None for no gains.
      mup_base_width: width at which muP is no change (:mod:`jaxclip.models.mup`); 0 for no muP.
      mup_base_heads: heads at that width; 0 where the size of a head is the same.
      num_experts: MLPs of which a token takes some (:mod:`jaxclip.models.experts`); 0 for one MLP.
      expert_blocks: how many of the last blocks have them; 0 for all.
      experts_per_token: how many a token takes.
      expert_capacity: c, an expert takes at most ceil(c k L / E) of a row's L tokens, of E experts
        and k per token; 0 for any number.
    """

    image_size: int = 224
    patch_size: int = 16
    stem: str = "patch"
    stem_widths: tuple[int, ...] = dependent((), on="stem", values=("conv", "conv_bn"))
    stem_depth: int = dependent(1, on="stem", values=("conv", "conv_bn"))
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    pool: str = "cls"
    num_queries: int = dependent(256, on="pool", values=("queries",))
    class_token: bool = False
    pool_prefix: bool = False
    pool_heads: int = dependent(0, on="pool", values=("map", "queries"))
    pool_mlp_dim: int = dependent(0, on="pool", values=("map", "queries"))
    norm_after_pool: bool = False
    positions: str = "learned"
    rope: str = "none"
    rope_grid: int = dependent(0, on="rope", values=("yx", "xy"))
    rope_offset: float = dependent(0.0, on="rope", values=("yx", "xy"))
    pre_norm: bool = True
    patch_bias: bool = False
    activation: str = "gelu"
    mlp: str = "plain"
    norm: str = "layer"
    norm_eps: float = 1e-5
    norm_place: str = "pre"
    sub_norm: bool = False
    qkv_bias: str = "all"
    projection: str = "linear"
    alpha: bool = False
    num_registers: int = 0
    max_patches: int = 0
    dropout: float = 0.0
    patch_dropout: float = 0.0
    first_layer: str = "plain"
    tract_lambda: float = dependent(0.1, on="first_layer", values=("tract",))
    qk_norm: bool = False
    attention_soft_cap: float = 0.0
    layer_scale: float | None = None
    mup_base_width: int = 0
    mup_base_heads: int = 0
    num_experts: int = 0
    expert_blocks: int = dependent(0, on="num_experts")
    experts_per_token: int = dependent(2, on="num_experts")
    expert_capacity: float = dependent(0.0, on="num_experts")
    class_position: bool = dependent(True, on="has_class_token", way="there is no class token")
    head_dim: int = 0
    kind: str = "vit"

    def __post_init__(self) -> None:
        check_image(self)

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands before the patches."""
        return self.pool in ("cls", "queries") or self.class_token

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
        pictures = f"{self.image_size} px in patches"
        if self.max_patches:
            pictures = f"any aspect ratio, up to {self.max_patches} patches"
        return (
            f"{pictures} of {self.patch_size}, width {self.width}, depth {self.depth}, "
            f"{self.num_heads} heads, MLP {self.mlp_dim}, pool {self.pool}, {self.activation}"
        )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text Transformer.

    Attributes:
      kind: ``"transformer"``; for other towers see :mod:`jaxclip.models.text_towers`.
      vocab_size: number of tokens.
      pad_id: the token that is padding. Where it is not 0 it also ends a text (SigLIP's 1), which
        then reaches to the first of them.
      context_length: longest sequence.
      num_positions: rows of the table of positions of ``kind="roberta"``, which counts places from
        ``pad_id + 1``; 0 for as many as are needed.
      width, depth, num_heads, mlp_dim: as in :class:`ImageConfig`.
      causal: mask the future (CLIP); else bidirectional (SigLIP).
      pool: ``"last"`` (the last token of the text: CLIP's end of text), ``"eos"`` (the first
        ``eos_id``), ``"final"`` (the last place, padding or not: SigLIP), ``"mean"`` (over tokens),
        ``"map"``, or ``"cls"`` (CoCa: a class token behind the text, which is as long as the row;
        ``pad_id`` is hidden from it, wherever it stands, and there is one position more).
      eos_id: the token that ``pool="eos"`` reads.
      mask_padding: keep padding out of bidirectional attention and pooling (SigLIP does not).
      activation, norm_eps: as in :class:`ImageConfig`.
      projection: ``"linear"`` (no bias, CLIP), ``"linear_bias"`` (SigLIP), ``"mlp"`` (two layers
        with a GELU between, no biases: open_clip's towers of transformers), or ``"none"`` if
        ``width`` is the size of the joint space.
      dropout, qk_norm, attention_soft_cap, layer_scale, mup_base_width, mup_base_heads, head_dim,
      num_experts, expert_blocks, experts_per_token, expert_capacity: as in :class:`ImageConfig`.
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
    qk_norm: bool = False
    attention_soft_cap: float = 0.0
    layer_scale: float | None = None
    mup_base_width: int = 0
    mup_base_heads: int = 0
    eos_id: int = dependent(0, on="pool", values=("eos",))
    kind: str = "transformer"
    num_positions: int = dependent(0, on="kind", values=("roberta",))
    num_experts: int = 0
    expert_blocks: int = dependent(0, on="num_experts")
    experts_per_token: int = dependent(2, on="num_experts")
    expert_capacity: float = dependent(0.0, on="num_experts")
    head_dim: int = 0

    def __post_init__(self) -> None:
        check_cures("text", self)
        check_experts("text", self)
        check_rate("text.dropout", self.dropout)
        if not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(
                f"model.text.pad_id={self.pad_id} must be a token, 0 to vocab_size - 1 = "
                f"{self.vocab_size - 1}"
            )
        if not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(
                f"model.text.eos_id={self.eos_id} must be a token, 0 to vocab_size - 1 = "
                f"{self.vocab_size - 1}"
            )
        check_choice("text.pool", self.pool, ("last", "eos", "final", "mean", "map", "cls"))
        if self.pool == "cls" and not self.causal:
            raise ValueError(
                "model.text.pool='cls' appends a class token that texts must not see; set "
                "model.text.causal=True"
            )
        if self.kind != "transformer" and ":" not in self.kind:
            known = ["transformer", *TEXT_TOWERS.names()]
            if self.kind not in known:
                raise ValueError(f"unknown model.text.kind {self.kind!r}{hint(self.kind, known)}")
        check_choice("text.projection", self.projection, ("linear", "linear_bias", "mlp", "none"))
        check_activation("text", self.activation)
        check_heads("text", self)

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.width // self.num_heads


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

    image: Any = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    embed_dim: int = 512
    logit_scale_init: float = math.log(1 / 0.07)
    logit_bias_init: float | None = None

    def __post_init__(self) -> None:
        for name, tower in (("image", self.image), ("text", self.text)):
            if tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"model.{name}.projection='none' needs model.{name}.width={tower.width} equal "
                    f"to model.embed_dim={self.embed_dim}"
                )
        if not isinstance(self.image, ImageConfig):
            return
        heads = self.image.pool_heads or self.image.num_heads
        if self.image.pool == "queries" and self.embed_dim % heads:
            raise ValueError(
                f"model.image.pool_heads={heads} does not divide model.embed_dim={self.embed_dim}"
            )

    @property
    def token_width(self) -> int:
        """Channels of the image tower's tokens."""
        return self.embed_dim if self.image.pool == "queries" else self.image.width

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


def _known(section: str, given: Mapping[str, Any], cls: type) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
        if key not in known:
            raise ValueError(f"unknown field {section}.{key}{hint(key, known)}")
