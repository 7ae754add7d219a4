"""Two towers and a temperature, as pure functions of one plain dict of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxclip.models import fused_attention, layers
from jaxclip.models.presets import CLIPConfig
from jaxclip.models.text import TextTransformer
from jaxclip.models.vit import VisionTransformer

Params = dict[str, Any]

_IMPLEMENTATIONS = (None, "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class CLIP:
    """The encoders of a configuration. It holds no parameters: these are

    ``{"image": {...}, "text": {...}, "logit_scale": f32[], "logit_bias": f32[] (sigmoid only)}``.
    """

    config: CLIPConfig
    image: nn.Module
    text: nn.Module
    flat_products: bool = False

    def init(self, rng: jax.Array) -> Params:
        """Draw float32 parameters; traceable, so that they can be made sharded."""
        image_rng, text_rng = jax.random.split(rng)
        # One example does not divide over the devices of a sharded attention, which has no
        # parameters of its own.
        image, text = (m.clone(attention_implementation=None) for m in (self.image, self.text))
        size = self.config.image.image_size
        images = jnp.zeros((1, size, size, 3), jnp.float32)
        tokens = jnp.ones((1, self.config.text.context_length), jnp.int32)
        params = {
            "image": image.init(image_rng, images)["params"],
            "text": text.init(text_rng, tokens)["params"],
            "logit_scale": jnp.asarray(self.config.logit_scale_init, jnp.float32),
        }
        if self.config.logit_bias_init is not None:
            params["logit_bias"] = jnp.asarray(self.config.logit_bias_init, jnp.float32)
        return params

    def encode_image(self, params: Params, images: jax.Array) -> jax.Array:
        """Embed images.

        Args:
          params: the whole dict.
          images: float[B, image_size, image_size, 3], normalised.

        Returns:
          float32[B, embed_dim] of unit length.
        """
        with layers.flat_products(self.flat_products):
            embeddings: Any = self.image.apply({"params": params["image"]}, images)
        return unit(embeddings)

    def encode_text(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Embed texts.

        Args:
          params: the whole dict.
          tokens: int32[B, L], L at most ``context_length``, 0 = padding.

        Returns:
          float32[B, embed_dim] of unit length.
        """
        with layers.flat_products(self.flat_products):
            embeddings: Any = self.text.apply({"params": params["text"]}, tokens)
        return unit(embeddings)


def build(
    config: CLIPConfig,
    *,
    dtype: str = "float32",
    remat: str = "none",
    scan_layers: bool = False,
    attention_implementation: layers.Implementation = None,
    gather_block: Mapping[str, Callable[[Any], Any]] | None = None,
    flat_products: bool = False,
) -> CLIP:
    """Build the encoders.

    Args:
      config: sizes; :func:`jaxclip.models.presets.get` has the published ones.
      dtype: compute dtype; parameters, norms' statistics and outputs are float32.
      remat: what blocks compute again in the backward pass: ``"none"``, or a name that
        :func:`jaxclip.models.layers.remat_policy` knows.
      scan_layers: loop over blocks instead of unrolling; parameters keep the unrolled layout.
      attention_implementation: that of ``jax.nn.dot_product_attention``: None (XLA's choice),
        ``"xla"`` or ``"cudnn"``; ``"fused"`` for :mod:`jaxclip.models.fused_attention` on one
        device, or what its ``sharded`` returns for several.
      gather_block: for ``"image"`` and ``"text"`` a function of a block's parameters that makes of
        them what the block uses, where they are sharded; None leaves them as they are.
      flat_products: whether linear layers flatten the leading axes, which is faster on CPUs alone
        (:func:`jaxclip.models.layers.flat_products`).

    Raises:
      ValueError: an unknown remat policy or attention implementation.
    """
    if remat != "none":
        layers.remat_policy(remat)
    if attention_implementation == "fused":
        attention_implementation = fused_attention.fused_attention
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
    }
    return CLIP(
        config,
        VisionTransformer(
            config.image, config.embed_dim, gather_block=gather.get("image"), **options
        ),
        TextTransformer(config.text, config.embed_dim, gather_block=gather.get("text"), **options),
        flat_products=flat_products,
    )


def unit(x: jax.Array) -> jax.Array:
    """Scale rows to unit length in float32; a zero row stays zero and has gradient zero."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
