"""Two towers and a temperature, as pure functions of one plain dict of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxclip.models import features as features_lib
from jaxclip.models import fused_attention, layers
from jaxclip.models import remat as remat_lib
from jaxclip.models.features import Features
from jaxclip.models.image_towers import TOWERS
from jaxclip.models.layers import unit
from jaxclip.models.patch_sequence import PatchSequence
from jaxclip.models.presets import CLIPConfig
from jaxclip.models.staged import StagedTower
from jaxclip.models.text import TextTransformer
from jaxclip.models.text_towers import TEXT_TOWERS
from jaxclip.models.vit import VisionTransformer

__all__ = ["CLIP", "Params", "build", "unit"]

Params = dict[str, Any]

_IMPLEMENTATIONS = (None, "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class CLIP:
    """The encoders of a configuration. It holds no parameters: these are

    ``{"image": {...}, "text": {...}, "logit_scale": f32[], "logit_bias": f32[] (sigmoid only)}``.
    """

    config: CLIPConfig
    image: VisionTransformer | StagedTower
    text: TextTransformer

    def init(self, rng: jax.Array) -> Params:
        """Draw float32 parameters; traceable, so that they can be made sharded."""
        image_rng, text_rng = jax.random.split(rng)
        params = {
            "image": self.image.init(image_rng),
            "text": self.text.init(text_rng),
            "logit_scale": jnp.asarray(self.config.logit_scale_init, jnp.float32),
        }
        if self.config.logit_bias_init is not None:
            params["logit_bias"] = jnp.asarray(self.config.logit_bias_init, jnp.float32)
        return params

    def encode_image(self, params: Params, images: jax.Array | PatchSequence) -> jax.Array:
        """Embed images.

        Args:
          params: the whole dict.
          images: float[B, image_size, image_size, 3], normalised; :meth:`image_features` takes
            other sizes. With ``model.image.alpha`` there may be a fourth channel, 0 to 1. With
            ``max_patches``: any size, or patch sequences.

        Returns:
          float32[B, embed_dim] of unit length.

        Raises:
          ValueError: images of another shape, or of whole numbers, which are not normalised.
        """
        size = self.config.image.image_size
        _check_normalised(images)
        if isinstance(images, PatchSequence) or self.config.image.max_patches:
            return unit(self.image.encode(params["image"], images))
        has_alpha = self.config.image.alpha and images.shape[1:] == (size, size, 4)
        if images.shape[1:] != (size, size, 3) and not has_alpha:
            raise ValueError(
                f"images of shape {images.shape}; the image tower takes [B, {size}, {size}, 3]"
            )
        return unit(self.image.encode(params["image"], images))

    def encode_text(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Embed texts.

        Args:
          params: the whole dict.
          tokens: int32[B, L], L at most ``context_length``, 0 = padding.

        Returns:
          float32[B, embed_dim] of unit length.

        Raises:
          ValueError: rows that are too long, or no whole numbers [B, L].
        """
        return unit(self.text.encode(params["text"], tokens))

    def image_features(
        self,
        params: Params,
        images: jax.Array | PatchSequence,
        **asked: Unpack[features_lib.Asked],
    ) -> Features:
        """Everything that the image tower gives. Under jit, what nobody uses costs nothing.

        Args:
          params: the whole dict.
          images: float[B, H, W, 3], normalised, or patch sequences. Where H and W are not
            ``image_size``, positions are interpolated
            (:func:`jaxclip.models.positions.resize_positions`).
          **asked: see :class:`jaxclip.models.features.Asked`.

        Raises:
          ValueError: shapes, indices, paths or keys that don't fit.
        """
        _check_normalised(images)
        return self.image.features(params["image"], images, **asked)

    def text_features(
        self, params: Params, tokens: jax.Array, **asked: Unpack[features_lib.Asked]
    ) -> Features:
        """Everything that the text tower gives; see :meth:`image_features`.

        Args:
          params: the whole dict.
          tokens: int32[B, L], L at most ``context_length``, 0 = padding.
          **asked: see :class:`jaxclip.models.features.Asked`.
        """
        return self.text.features(params["text"], tokens, **asked)

    def project_image(self, params: Params, x: jax.Array) -> jax.Array:
        """Map normed tokens or pooled vectors to the joint space: [..., C] -> float32[..., D].

        The rows are not of unit length. A tower without projection returns them as they are.
        """
        return self.image.project(params["image"], x).astype(jnp.float32)

    def project_text(self, params: Params, x: jax.Array) -> jax.Array:
        """:meth:`project_image` for texts."""
        return self.text.project(params["text"], x).astype(jnp.float32)


def build(
    config: CLIPConfig,
    *,
    dtype: str = "float32",
    remat: str = "none",
    scan_layers: bool = False,
    attention_implementation: layers.Implementation = None,
    gather_block: Mapping[str, Callable[..., Any]] | None = None,
    flat_products: bool = False,
    residual_dtype: str | None = None,
) -> CLIP:
    """Build the encoders.

    Args:
      config: sizes; :func:`jaxclip.models.presets.get` has the published ones.
      dtype: compute dtype; parameters, norms' statistics and outputs are float32.
      remat: what blocks compute again in the backward pass: ``"none"``, or a name that
        :func:`jaxclip.models.remat.remat_policy` knows.
      scan_layers: loop over blocks instead of unrolling; parameters keep the unrolled layout.
      attention_implementation: that of ``jax.nn.dot_product_attention``: None (XLA's choice),
        ``"xla"`` or ``"cudnn"``; ``"fused"`` for :mod:`jaxclip.models.fused_attention` on one
        device, or what its ``sharded`` returns for several. Where a caller gives a bias, asks for
        weights or attends by another function, XLA computes attention.
      gather_block: for ``"image"`` and ``"text"`` a function of a block's parameters and its name
        that makes of them what the block uses, where they are sharded; None leaves them as they
        are.
      flat_products: whether linear layers flatten the leading axes, which is faster on CPUs alone
        (:func:`jaxclip.models.linear.dense`).
      residual_dtype: of the tokens between the blocks, and of what is before and behind these
        (embedding, last norm, pooling, projection), and of the blocks' products where a sum or an
        activation follows; None for ``dtype``. ``"float32"`` with
        ``dtype="bfloat16"`` brings embeddings nearer to float32's, for more memory. ResNets and
        FastViT compute in ``dtype`` throughout.

    Raises:
      ValueError: an unknown remat policy or attention implementation, or one that can't cap scores.
    """
    if remat != "none":
        remat_lib.remat_policy(remat)
    if attention_implementation == "fused":
        attention_implementation = fused_attention.fused_attention
    capped = [t for t in ("image", "text") if getattr(config, t).attention_soft_cap]
    if capped and attention_implementation not in (None, "xla"):
        raise ValueError(
            f"model.{capped[0]}.attention_soft_cap needs its own attention scores, which "
            f"attention_implementation={_name(attention_implementation)!r} does not give; set "
            "it to None"
        )
    if not callable(attention_implementation) and attention_implementation not in _IMPLEMENTATIONS:
        raise ValueError(
            f"attention_implementation={attention_implementation!r}; use None, 'xla', 'cudnn' or "
            "'fused'"
        )
    gather = gather_block or {}
    options: dict[str, Any] = {
        "dtype": jnp.dtype(dtype),
        "remat": remat,
        "scan_layers": scan_layers,
        "attention_implementation": attention_implementation,
        "flat_products": flat_products,
        "residual_dtype": None if residual_dtype is None else jnp.dtype(residual_dtype),
    }
    kind, text_kind = config.image.kind, config.text.kind
    image_tower = VisionTransformer if kind == "vit" else TOWERS.get(kind)
    text_tower = TextTransformer if text_kind == "transformer" else TEXT_TOWERS.get(text_kind)
    return CLIP(
        config,
        image_tower(config.image, config.embed_dim, gather_block=gather.get("image"), **options),
        text_tower(config.text, config.embed_dim, gather_block=gather.get("text"), **options),
    )


def _check_normalised(images: Any) -> None:
    """Refuse pixels of 0 to 255, which a tower would take for floats far out of the ordinary."""
    pixels = images.patches if isinstance(images, PatchSequence) else images
    if not jnp.issubdtype(jnp.result_type(pixels), jnp.floating):
        raise ValueError(
            f"images of dtype {jnp.result_type(pixels)}; the image tower takes normalised floats, "
            "(x / 255 - mean) / std (encode_image of jaxclip.load's models does that itself)"
        )


def _name(implementation: Any) -> str:
    return "fused" if callable(implementation) else implementation
