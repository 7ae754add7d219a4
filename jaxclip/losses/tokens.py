"""Cross-entropy of tokens, as sums over each row: parts of a mean over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxclip.shapes import check_shapes


def token_sums(logits: jax.Array, targets: jax.Array, real: jax.Array) -> dict[str, jax.Array]:
    """Sum each row's cross-entropies over its real tokens.

    The mean over all tokens of a batch is the sum of ``nll`` over that of ``tokens``, however the
    rows were divided.

    Args:
      logits: float[B, L, V].
      targets: int32[B, L] in [0, V).
      real: bool[B, L], which targets count.

    Returns:
      float32[B] each: ``nll``, ``hits`` (targets with the largest logit) and ``tokens``.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes(
        "token_sums", logits=(logits, "B L V"), targets=(targets, "B L"), real=(real, "B L")
    )
    logits = jnp.asarray(logits, jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    nll = jax.nn.logsumexp(logits, axis=-1) - chosen
    hits = jnp.argmax(jax.lax.stop_gradient(logits), axis=-1) == targets
    sums = {"nll": nll, "hits": hits, "tokens": jnp.ones_like(nll)}
    return {key: jnp.sum(x, axis=1, where=real, dtype=jnp.float32) for key, x in sums.items()}
