"""SimCLR's contrast of two views of the same pictures (Chen et al., 2020, arXiv:2002.05709)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import blockwise
from jaxclip.losses._base import Metrics, as_pairs, as_scalar
from jaxclip.losses.infonce import logsumexp_by


def simclr(
    first: jax.Array,
    second: jax.Array,
    *,
    logit_scale: jax.Array | float,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """Find a row's other view among all rows of both views, itself left out.

    With logits x = exp(logit_scale) · A Bᵀ and y = exp(logit_scale) · A Aᵀ, row i of the first view
    has the loss lse(x_i, y_i without y_ii) - x_ii; the second view's likewise. The total is the
    mean over rows and views.

    Args:
      first: float[B, D], unit rows, the global batch.
      second: float[B, D], of the same pictures.
      logit_scale: float32[], log of the factor on the products.
      precision: of the matrix products.
      implementation: ``"plain"`` or ``"blockwise"``, as :func:`jaxclip.losses.infonce`.
      tile_size: of ``"blockwise"``.
      mesh: mesh over which the batch is sharded, for ``"blockwise"``.

    Returns:
      ``(loss float32[], metrics)`` with ``accuracy``, the share of rows of both views whose largest
      logit is that of their other view.

    Raises:
      ValueError: an unknown implementation, or shapes that do not fit.
    """
    a, b = as_pairs("simclr", first=first, second=second)
    scale = jnp.exp(as_scalar("simclr", "logit_scale", logit_scale, a.dtype))
    lse = logsumexp_by(implementation, precision, tile_size, mesh)
    own = scale * jnp.sum(a * b, axis=-1)
    across_a, across_b, best_a, best_b = lse(a, b, scale)
    losses, hits = [], []
    for rows, across, best in ((a, across_a, best_a), (b, across_b, best_b)):
        within, _, best_within, _ = lse(rows, rows, scale)
        losses.append(jnp.logaddexp(jnp.logaddexp(across, within), own) - own)
        hits.append(own > jnp.maximum(best, best_within))
    accuracy = jnp.mean(jnp.stack(hits), dtype=jnp.float32)
    return jnp.mean(jnp.stack(losses)), {"accuracy": accuracy}
