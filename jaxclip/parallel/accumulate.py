"""Value and gradient of a contrastive step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

Encoder = Callable[[Any, jax.Array], jax.Array]
Metrics = dict[str, jax.Array]
ValueAndGrad = Callable[[Any, Mapping[str, jax.Array]], tuple[tuple[jax.Array, Metrics], Any]]


def contrastive_value_and_grad(
    encode_image: Encoder,
    encode_text: Encoder,
    loss_fn: Callable[..., tuple[jax.Array, Metrics]],
    *,
    num_micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> ValueAndGrad:
    """Build ``(params, batch) -> ((loss, metrics), gradients)`` of a two-tower step.

    Args:
      encode_image: ``(params, images [B, ...]) -> f32[B, D]``.
      encode_text: ``(params, tokens [B, L]) -> f32[B, D]``.
      loss_fn: ``(image_embeddings, text_embeddings, *, logit_scale, logit_bias) -> (loss,
        metrics)`` on the global batch (:mod:`jaxclip.losses`).
      num_micro_batches: into how many pieces the batch is cut.
      mesh: the mesh the batch is sharded over.

    Returns:
      The function; a batch is a mapping with ``image`` and ``text``.
    """
    if num_micro_batches != 1:
        raise NotImplementedError(f"num_micro_batches={num_micro_batches}: use 1")

    def loss_of(params: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        return loss_fn(
            encode_image(params, batch["image"]),
            encode_text(params, batch["text"]),
            logit_scale=params["logit_scale"],
            logit_bias=params.get("logit_bias"),
        )

    return jax.value_and_grad(loss_of, has_aux=True)
