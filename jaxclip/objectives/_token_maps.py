"""Linear maps of both towers' tokens to one space, which several methods share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxclip.models import CLIPConfig
from jaxclip.models.heads import MLPHead
from jaxclip.objectives._base import Outputs, Params


def init_maps(rng: jax.Array, sizes: CLIPConfig, features: int) -> Params:
    """Parameters of :func:`mapped_tokens` by tower: linear maps from its width to ``features``."""
    head = MLPHead(features, depth=1)
    widths = {"image": sizes.image.width, "text": sizes.text.width}
    return {
        tower: head.init(key, jnp.zeros((1, width)))["params"]
        for key, (tower, width) in zip(jax.random.split(rng), widths.items(), strict=True)
    }


def mapped_tokens(
    params: Params, outputs: Outputs, features: int, *, unit: bool
) -> tuple[jax.Array, jax.Array]:
    """Patches float32[B, P, features] and words float32[B, L, features].

    Args:
      params: with those of :func:`init_maps`.
      outputs: with ``image_tokens`` and ``text_tokens``.
      features: size of the space.
      unit: whether they are scaled to unit length.
    """

    def mapped(tower: str) -> Any:
        x = outputs[f"{tower}_tokens"]
        head = MLPHead(features, depth=1, unit=unit, dtype=x.dtype)
        return head.apply({"params": params[tower]}, x)

    return mapped("image"), mapped("text")
