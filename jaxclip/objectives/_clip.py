"""CLIP's loss inside another method."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip import losses
from jaxclip.objectives._base import Context, Metrics, Outputs


def clip_part(
    weight: float,
    images: jax.Array,
    texts: jax.Array,
    ctx: Context,
    *,
    log_scale: jax.Array | None = None,
    implementation: str = "plain",
) -> tuple[jax.Array, Metrics]:
    """A weight times CLIP's loss; at weight 0 nothing is computed.

    Args:
      weight: of it.
      images: float32[B, D], unit rows of the global batch.
      texts: float32[B, D].
      ctx: of the term.
      log_scale: float32[], log of the factor on cosines; None for the model's.
      implementation: ``"plain"`` or ``"blockwise"``.

    Returns:
      ``(float32[], metrics)``: the weighted loss, and ``clip`` without the weight beside the
      accuracies of :func:`jaxclip.losses.infonce`.
    """
    if weight == 0:
        return jnp.zeros((), jnp.float32), {}
    value, metrics = losses.infonce(
        images,
        texts,
        logit_scale=ctx.logit_scale if log_scale is None else log_scale,
        implementation=implementation,
        mesh=ctx.mesh,
    )
    return weight * value, metrics | {"clip": value}


def clip_part_if_any(weight: float, outputs: Outputs, ctx: Context) -> tuple[jax.Array, Metrics]:
    """:func:`clip_part` of ``image`` and ``text``, which need not be made at weight 0."""
    if weight == 0:
        return jnp.zeros((), jnp.float32), {}
    return clip_part(weight, outputs["image"], outputs["text"], ctx)
