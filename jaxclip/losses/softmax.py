"""InfoNCE over the global batch (van den Oord et al., 2018; Radford et al., 2021, figure 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.losses._base import Metrics, as_pairs, as_scalar, check_share, matmul


def softmax(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array,
    logit_bias: jax.Array | None = None,
    label_smoothing: float = 0.0,
    precision: str = "highest",
) -> tuple[jax.Array, Metrics]:
    """Symmetric InfoNCE: the mean of the cross-entropies over rows and over columns.

    With logits L = exp(logit_scale) · I Tᵀ, the loss is
    mean_i [ lse_j L_ij - L_ii ] / 2 + mean_j [ lse_i L_ij - L_jj ] / 2; with label smoothing ε the
    target of each row and column is (1 - ε) on the diagonal plus ε / B everywhere.

    Args:
      image_embeddings: float[B, D], L2-normalised, the global batch; half precision is computed
        with in float32.
      text_embeddings: float[B, D], L2-normalised.
      logit_scale: float32[], log of the factor on the cosines.
      logit_bias: ignored; a constant added to all logits changes nothing here.
      label_smoothing: ε in [0, 1).
      precision: of the matrix products: ``"highest"`` is true float32, ``"default"`` what the
        device does fastest (:func:`jaxclip.losses._base.matmul`).

    Returns:
      ``(loss, metrics)``: float32[], and ``accuracy_image_to_text``, ``accuracy_text_to_image``,
      the shares of rows and columns whose largest logit (ties excluded) is on the diagonal.

    Raises:
      ValueError: embeddings of other shapes, no rows, a scale that is no scalar, or an option out
        of its range.
    """
    del logit_bias
    check_share("softmax", "label_smoothing", label_smoothing, below_one=True)
    images, texts = as_pairs(
        "softmax", image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    logits = jnp.exp(as_scalar("softmax", "logit_scale", logit_scale, images.dtype)) * matmul(
        images, texts.T, precision
    )
    positive = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0)
    loss = jnp.mean(rows - positive) / 2 + jnp.mean(columns - positive) / 2
    if label_smoothing:
        loss += label_smoothing * (jnp.mean(positive) - jnp.mean(logits))
    metrics = {
        "accuracy_image_to_text": _share_first(logits, positive, axis=1),
        "accuracy_text_to_image": _share_first(logits, positive, axis=0),
    }
    return loss, metrics


def _share_first(logits: jax.Array, positive: jax.Array, axis: int) -> jax.Array:
    # The diagonal is the only one at its maximum: an argmax would count ties as hits.
    at_least = logits >= jnp.expand_dims(positive, axis)
    return jnp.mean(at_least.sum(axis=axis) == 1, dtype=jnp.float32)
