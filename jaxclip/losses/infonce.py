"""InfoNCE with what its relatives change in it: one kernel, plain and blockwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import blockwise
from jaxclip.losses._base import Metrics, as_float, as_pairs, as_scalar, check_share, matmul
from jaxclip.shapes import check_shapes

# Far below any logit, yet finite: a row of one column has a log-sum-exp with a gradient.
_NOTHING = -1e30


def infonce(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array,
    decoupled: bool = False,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    negatives: jax.Array | None = None,
    negatives_valid: jax.Array | None = None,
    label_smoothing: float = 0.0,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """Symmetric InfoNCE; without options it is :func:`jaxclip.losses.softmax`.

    With logits x = exp(logit_scale) · I Tᵀ, row i of the images has the loss
    lse_j x_ij - positive_i, column j of the texts likewise, and the total is
    mean_i w_i (row_i + column_i) / 2.

    Args:
      image_embeddings: float[B, D], the global batch; unit rows unless an objective means it.
      text_embeddings: float[B, D].
      logit_scale: float32[], log of the factor on the products.
      decoupled: leave the pair itself out of the log-sum-exp (Yeh et al. 2022, arXiv:2110.06848,
        equation 3). Then the loss has no lower bound as the scale grows.
      labels: int[B] or None. Rows of one label are positives of each other: the positive is the
        mean of their logits (Yang et al. 2022, UniCL, arXiv:2204.03610, equation 3). A negative
        label is that of no other row.
      weights: float[B] or None for 1: w.
      negatives: float[B, M, D] or None: further texts, each a wrong answer for every image
        (Yuksekgonul et al. 2023, NegCLIP, arXiv:2210.01936); they are no columns of their own.
      negatives_valid: bool[B, M] or None for all: which of them there are.
      label_smoothing: ε in [0, 1): the target is (1 - ε) times the positives plus ε / B everywhere.
      precision: of the matrix products, as :func:`jaxclip.losses.softmax`.
      implementation: ``"plain"``, or ``"blockwise"``: no matrix of logits is held, and memory on a
        device is that of its rows.
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded, for ``"blockwise"``.

    Returns:
      ``(loss, metrics)``: float32[], and ``accuracy_image_to_text``, ``accuracy_text_to_image``:
      shares of rows and columns whose own pair has the largest logit (ties excluded).

    Raises:
      ValueError: an unknown implementation, ``decoupled`` with ``labels``, or arrays of shapes that
        do not fit.
    """
    if decoupled and labels is not None:
        raise ValueError("decoupled and labels can't be combined: which pair would be left out?")
    check_share("infonce", "label_smoothing", label_smoothing, below_one=True)
    images, texts = as_pairs(
        "infonce", image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    if labels is not None:
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"infonce: labels are {labels.dtype}, where integers are wanted")
    weights = None if weights is None else jnp.asarray(weights)
    check_shapes(
        "infonce",
        image_embeddings=(images, "B D"),
        labels=(labels, "B"),
        weights=(weights, "B"),
        negatives=(negatives, "B M D"),
        negatives_valid=(negatives_valid, "B M"),
    )
    scale = jnp.exp(as_scalar("infonce", "logit_scale", logit_scale, images.dtype))
    lse = logsumexp_by(implementation, precision, tile_size, mesh)
    row, column, row_max, column_max = lse(images, texts, scale)
    own = scale * jnp.sum(images * texts, axis=-1)
    for query, wrong in _negative_columns(images, negatives, negatives_valid):
        others, _, others_max, _ = lse(query, wrong, scale)
        beside = scale * jnp.sum(query * wrong, axis=-1)  # lse leaves the diagonal out
        row = jnp.logaddexp(row, jnp.logaddexp(others, beside))
        row_max = jnp.maximum(row_max, jnp.maximum(others_max, beside))
    if not decoupled:
        row, column = jnp.logaddexp(row, own), jnp.logaddexp(column, own)
    row_positive = column_positive = own
    if labels is not None:
        row_positive = scale * jnp.sum(images * _mean_of_label(texts, labels), axis=-1)
        column_positive = scale * jnp.sum(texts * _mean_of_label(images, labels), axis=-1)
    each = (row - row_positive + column - column_positive) / 2
    if label_smoothing:
        mean = scale * (images @ jnp.mean(texts, 0) + texts @ jnp.mean(images, 0)) / 2
        each += label_smoothing * ((row_positive + column_positive) / 2 - mean)
    metrics = {
        "accuracy_image_to_text": jnp.mean(own > row_max, dtype=jnp.float32),
        "accuracy_text_to_image": jnp.mean(own > column_max, dtype=jnp.float32),
    }
    return jnp.mean(each if weights is None else weights * each), metrics


def logsumexp_by(
    implementation: str, precision: str, tile_size: int, mesh: Mesh | None
) -> Callable[..., tuple[jax.Array, ...]]:
    """``(images, texts, scale) -> (rows', columns' log-sum-exp, rows', columns' maximum)`` of the
    logits off the diagonal, each [B]; the maxima carry no gradient.

    Raises:
      ValueError: an unknown implementation.
    """

    def plain(
        images: jax.Array, texts: jax.Array, scale: jax.Array, left_out: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        logits = scale * matmul(images, texts.T, precision)
        out = jnp.eye(len(logits), dtype=bool)
        if left_out is not None:
            out |= jnp.arange(len(logits))[:, None] == left_out
        logits = jnp.where(out, _NOTHING, logits)
        sums = jax.nn.logsumexp(logits, axis=1), jax.nn.logsumexp(logits, axis=0)
        fixed = jax.lax.stop_gradient(logits)
        return (*sums, jnp.max(fixed, axis=1), jnp.max(fixed, axis=0))

    def by_tiles(
        images: jax.Array, texts: jax.Array, scale: jax.Array, left_out: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        how: Any = {"precision": precision, "tile_size": tile_size, "mesh": mesh}
        return blockwise.logsumexp(images, texts, scale, left_out=left_out, **how)

    try:
        return {"plain": plain, "blockwise": by_tiles}[implementation]
    except KeyError:
        raise ValueError(f"implementation={implementation!r}; use 'plain' or 'blockwise'") from None


def _negative_columns(
    images: jax.Array, negatives: jax.Array | None, valid: jax.Array | None
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Images and one negative of each row at a time, [B, D'] both.

    A further coordinate, 1 of every image, puts those that are not valid far below any logit, so
    that tiles of products need no mask.
    """
    if negatives is None:
        return
    wrong = jnp.moveaxis(as_float(negatives)[0], 1, 0)
    if valid is not None:
        far = jnp.where(valid.T[:, :, None], 0.0, -1e9).astype(wrong.dtype)
        wrong = jnp.concatenate([wrong, far], axis=-1)
        images = jnp.concatenate([images, jnp.ones((len(images), 1), images.dtype)], axis=-1)
    for each in wrong:
        yield images, each


def _mean_of_label(rows: jax.Array, labels: jax.Array) -> jax.Array:
    """float[B, D]: for each row the mean of the rows of its label."""
    size = rows.shape[0]
    place = jnp.arange(size, dtype=labels.dtype)
    # A number of its own for each negative label; -1 - place is negative for all places.
    labels = jnp.where(labels < 0, -1 - place, labels)
    _, group = jnp.unique(labels, size=size, return_inverse=True)
    group = group.reshape(size)
    sums = jax.ops.segment_sum(rows, group, num_segments=size)
    counts = jax.ops.segment_sum(jnp.ones(size, rows.dtype), group, num_segments=size)
    return sums[group] / counts[group][:, None]


def off_diagonal_logsumexp(
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array | float,
    *,
    left_out: jax.Array | None = None,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-sum-exp of the logits scale · a bᵀ without their diagonal, over rows and over columns.

    Args:
      a: float[B, D], the global batch.
      b: float[B, D].
      scale: factor on the products.
      left_out: int32[B] or None: of each column the number of one more row without it, -1 for none.
      precision: of the matrix products, as :func:`jaxclip.losses.softmax`.
      implementation: ``"plain"`` or ``"blockwise"``, as :func:`infonce`.
      tile_size: as :func:`infonce`.
      mesh: as :func:`infonce`.

    Returns:
      ``(float32[B], float32[B])``: lse_{j≠i} of row i and lse_{i≠j} of column j.

    Raises:
      ValueError: an unknown implementation.
    """
    a, b = as_pairs("off_diagonal_logsumexp", a=a, b=b)
    check_shapes("off_diagonal_logsumexp", a=(a, "B D"), left_out=(left_out, "B"))
    lse = logsumexp_by(implementation, precision, tile_size, mesh)
    rows, columns, *_ = lse(a, b, jnp.asarray(scale, a.dtype), left_out)
    return rows, columns
