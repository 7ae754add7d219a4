"""The pairwise sigmoid loss (Zhai et al., 2023, SigLIP, equation 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.losses._base import Metrics, as_pairs, as_scalar, matmul


def sigmoid(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array,
    logit_bias: jax.Array | None = None,
    precision: str = "highest",
) -> tuple[jax.Array, Metrics]:
    """Each of the B² pairs is a yes/no question: do this image and this text belong together?

    loss = -1/B Σ_ij log sigmoid(z_ij · (exp(logit_scale) · I_i·T_j + logit_bias)), z_ij = 1 on
    the diagonal and -1 off it.

    Args:
      image_embeddings: float[B, D], L2-normalised, the global batch; half precision is computed
        with in float32.
      text_embeddings: float[B, D], L2-normalised.
      logit_scale: float32[], log of the factor on the cosines (the paper starts at ln 10).
      logit_bias: float32[], added to all logits (the paper starts at -10); None is 0.
      precision: of the matrix products: ``"highest"`` is true float32, ``"default"`` what the
        device does fastest (:func:`jaxclip.losses._base.matmul`).

    Returns:
      ``(loss, metrics)``, float32[] and an empty dict.

    Raises:
      ValueError: embeddings of other shapes, no rows, or a scale or bias that is no scalar.
    """
    images, texts = as_pairs(
        "sigmoid", image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    given = 0.0 if logit_bias is None else logit_bias
    bias = as_scalar("sigmoid", "logit_bias", given, images.dtype)
    scale = jnp.exp(as_scalar("sigmoid", "logit_scale", logit_scale, images.dtype))
    logits = bias + scale * matmul(images, texts.T, precision)
    size = logits.shape[0]
    # softplus(x) for negatives, softplus(-x) = softplus(x) - x for positives.
    total = jnp.sum(jax.nn.softplus(logits)) - jnp.sum(jnp.diagonal(logits))
    return total / size, {}
