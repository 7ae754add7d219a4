"""Contrastive losses that never hold the matrix of logits.

Value and gradient are those of the plain losses; memory on a device is O(b d + tile²) for b rows of
width d there, whatever the global batch. The pairs off the diagonal are swept tile by tile
(:mod:`jaxclip.losses.ring`), the B pairs on it are a row-wise product, and the label smoothing's
mean over all logits is the product of two means.

The ring is that of SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3.3) carried over to
InfoNCE; recomputing tiles in the backward pass is FlashAttention's (Dao et al. 2022,
arXiv:2205.14135).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import ring
from jaxclip.losses._base import Metrics, as_pairs, as_scalar, check_share, matmul

# Large enough that a tile's matrix products keep a core busy, small enough that a tile stays in
# its cache (1 MiB of float32).
TILE_SIZE = 512


def softmax_blockwise(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array,
    logit_bias: jax.Array | None = None,
    label_smoothing: float = 0.0,
    precision: str = "highest",
    tile_size: int = TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE in both directions, equal to :func:`jaxclip.losses.softmax`.

    Args:
      image_embeddings: float[B, D], L2-normalised, the global batch.
      text_embeddings: float[B, D], L2-normalised.
      logit_scale: float32[], log of the factor on the cosines.
      logit_bias: ignored; a constant added to all logits changes nothing here.
      label_smoothing: share of the target spread evenly over the batch, in [0, 1).
      precision: of the matrix products: ``"highest"`` is true float32, ``"default"`` what the
        device does fastest (:func:`jaxclip.losses._base.matmul`).
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded; None computes where the arguments are.

    Returns:
      ``(loss, metrics)``, float32[] and ``accuracy_image_to_text``, ``accuracy_text_to_image``.

    Raises:
      ValueError: embeddings of other shapes, no rows, a scale that is no scalar, or an option out
        of its range.
    """
    del logit_bias
    what = "softmax_blockwise"
    check_share(what, "label_smoothing", label_smoothing, below_one=True)
    images, texts = as_pairs(
        what, image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    scale = jnp.exp(as_scalar(what, "logit_scale", logit_scale, images.dtype))
    row, column, row_max, column_max = logsumexp(
        images, texts, scale, precision=precision, tile_size=tile_size, mesh=mesh
    )
    positive = scale * jnp.sum(images * texts, axis=-1)
    loss = jnp.mean(jax.nn.softplus(row - positive) + jax.nn.softplus(column - positive)) / 2
    if label_smoothing:
        mean_logit = scale * jnp.vdot(jnp.mean(images, axis=0), jnp.mean(texts, axis=0))
        loss += label_smoothing * (jnp.mean(positive) - mean_logit)
    metrics = {
        "accuracy_image_to_text": jnp.mean(positive > row_max, dtype=jnp.float32),
        "accuracy_text_to_image": jnp.mean(positive > column_max, dtype=jnp.float32),
    }
    return loss, metrics


def sigmoid_blockwise(
    image_embeddings: jax.Array,
    text_embeddings: jax.Array,
    *,
    logit_scale: jax.Array,
    logit_bias: jax.Array | None = None,
    precision: str = "highest",
    tile_size: int = TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Metrics]:
    """The pairwise sigmoid loss, equal to :func:`jaxclip.losses.sigmoid`.

    Its gradient needs no sum over rows or columns first, so it is computed in the same sweep as the
    value, and nothing is recomputed.

    Args:
      image_embeddings: float[B, D], L2-normalised, the global batch.
      text_embeddings: float[B, D], L2-normalised.
      logit_scale: float32[], log of the factor on the cosines.
      logit_bias: float32[], added to all logits; None is 0.
      precision: of the matrix products: ``"highest"`` is true float32, ``"default"`` what the
        device does fastest (:func:`jaxclip.losses._base.matmul`).
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded; None computes where the arguments are.

    Returns:
      ``(loss, metrics)``.

    Raises:
      ValueError: embeddings of other shapes, no rows, a scale or bias that is no scalar, or
        ``tile_size`` below 1.
    """
    what, bias = "sigmoid_blockwise", 0.0 if logit_bias is None else logit_bias
    images, texts = as_pairs(
        what, image_embeddings=image_embeddings, text_embeddings=text_embeddings
    )
    scale = jnp.exp(as_scalar(what, "logit_scale", logit_scale, images.dtype))
    bias = as_scalar(what, "logit_bias", bias, images.dtype)
    static = Static(ring.plan(images.shape[0], tile_size, mesh), mesh, precision)
    positive = scale * jnp.sum(images * texts, axis=-1) + bias
    negatives = _softplus_sum(static, images, texts, scale, bias)
    return (jnp.sum(jax.nn.softplus(-positive)) + negatives) / images.shape[0], {}


def logsumexp(
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    *,
    left_out: jax.Array | None = None,
    precision: str = "highest",
    tile_size: int = TILE_SIZE,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-sum-exp and maximum of the logits off the diagonal, by row and by column.

    Args:
      images: float[B, D], rows.
      texts: float[B, D], columns.
      scale: float[], factor on the products.
      left_out: int32[B] or None: of each column the number of one more row without it, -1 for none.
      precision: of the matrix products.
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded; None computes where the arguments are.

    Returns:
      ``(rows' log-sum-exp, columns' log-sum-exp, rows' maximum, columns' maximum)``, each [B]; the
      maxima carry no gradient.
    """
    static = Static(ring.plan(len(images), tile_size, mesh), mesh, precision)
    return _logsumexp(static, images, texts, scale, left_out)


@dataclasses.dataclass(frozen=True)
class Static:
    """What is known when the sweep is traced."""

    layout: ring.Layout
    mesh: Mesh | None
    precision: str

    def dot(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return matmul(a, b, self.precision)


# --- log-sum-exp of rows and columns ------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logsumexp(
    static: Static,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    left_out: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log-sum-exp and maximum of the logits off the diagonal, by row and by column, each [B].

    The maxima carry no gradient.
    """
    return _logsumexp_sweep(static, images, texts, scale, *_given(left_out))


def _given(left_out: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if left_out is None else (left_out,)


def _mask(pairs: ring.Pairs, left_out: Sequence[jax.Array]) -> jax.Array:
    mask = pairs.off_diagonal()
    for row in left_out:
        mask = mask & (pairs.row[:, None] != row[None, :])
    return mask


@functools.partial(jax.jit, static_argnums=(0,))
def _logsumexp_sweep(static: Static, *arrays: jax.Array) -> Any:
    def local(
        images: jax.Array, texts: jax.Array, scale: jax.Array, *left_out: jax.Array
    ) -> tuple[jax.Array, ...]:
        none = (jnp.full(images.shape[:2], -jnp.inf, images.dtype), jnp.zeros_like(images[..., 0]))

        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            text, *skipped = columns
            logits = jnp.where(_mask(pairs, skipped), static.dot(rows, text.T), -jnp.inf)
            return _add(state, _max_and_sum(logits, 1)), _max_and_sum(logits, 0)

        columns = (texts, *left_out)
        row, column = ring.sweep(tile, scale * images, columns, none, none, _add, static.layout)
        return row[0] + jnp.log(row[1]), column[0] + jnp.log(column[1]), row[0], column[0]

    return ring.sharded(local, static.layout, static.mesh, (True,) * 4)(*arrays)


def _logsumexp_forward(
    static: Static,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    left_out: jax.Array | None,
) -> tuple[Any, Any]:
    given = _given(left_out)
    out = _logsumexp_sweep(static, images, texts, scale, *given)
    return out, ((images, texts, scale, out[0], out[1]), given)


def _logsumexp_backward(static: Static, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    arrays, left_out = residuals
    return (*_logsumexp_gradients(static, *arrays, *cotangents[:2], *left_out), None)


@functools.partial(jax.jit, static_argnums=(0,))
def _logsumexp_gradients(static: Static, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    def local(
        images: jax.Array,
        texts: jax.Array,
        scale: jax.Array,
        row_lse: jax.Array,
        column_lse: jax.Array,
        row_weight: jax.Array,
        column_weight: jax.Array,
        *left_out: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            (image, lse, weight), (text, lse_c, weight_c, *skipped) = rows, columns
            logits = static.dot(image, text.T)
            grad = weight[:, None] * jnp.exp(logits - lse[:, None])
            grad += weight_c[None, :] * jnp.exp(logits - lse_c[None, :])
            grad = jnp.where(_mask(pairs, skipped), grad, 0.0)
            return state + static.dot(grad, text), static.dot(grad.T, image)

        to_images, to_texts = ring.sweep(
            tile,
            (scale * images, row_lse, row_weight),
            (texts, column_lse, column_weight, *left_out),
            jnp.zeros_like(images),
            jnp.zeros_like(texts),
            jnp.add,
            static.layout,
        )
        return scale * to_images, to_texts, jnp.vdot(images, to_images)

    return ring.sharded(local, static.layout, static.mesh, (True, True, False))(*arrays)


_logsumexp.defvjp(_logsumexp_forward, _logsumexp_backward)


def _max_and_sum(logits: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """``(m, z)`` with log-sum-exp ``m + log z``; an empty sum is ``(-inf, 0)``."""
    peak = jnp.max(logits, axis=axis)
    shift = jnp.expand_dims(finite(peak), axis)
    return peak, jnp.sum(jnp.exp(logits - shift), axis=axis)


def _add(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> Any:
    """``(m, z)`` of the sum of two such sums."""
    peak = jnp.maximum(a[0], b[0])
    shift = finite(peak)
    return peak, a[1] * jnp.exp(a[0] - shift) + b[1] * jnp.exp(b[0] - shift)


def finite(peak: jax.Array) -> jax.Array:
    """A running maximum, of any shape, as what is subtracted in exponents: 0 where it is -inf."""
    # exp(-inf - 0) is 0, exp(-inf + inf) would be NaN.
    return jnp.where(jnp.isneginf(peak), 0.0, peak)


# --- sum of softplus ----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softplus_sum(
    static: Static,
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """Sum of softplus over the logits off the diagonal, []."""
    return _softplus_value(static, images, texts, scale, bias)


@functools.partial(jax.jit, static_argnums=(0,))
def _softplus_value(static: Static, *arrays: jax.Array) -> jax.Array:
    def local(images: Any, texts: Any, scale: Any, bias: Any) -> tuple[jax.Array]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            terms = jax.nn.softplus(static.dot(rows, columns.T) + bias)
            return state + jnp.sum(jnp.where(pairs.off_diagonal(), terms, 0.0), axis=1), None

        zeros = jnp.zeros_like(images[..., 0])
        sums, _ = ring.sweep(tile, scale * images, texts, zeros, None, ring.nothing, static.layout)
        return (jnp.sum(sums),)

    return ring.sharded(local, static.layout, static.mesh, (False,))(*arrays)[0]


@functools.partial(jax.jit, static_argnums=(0,))
def _softplus_forward(static: Static, *arrays: jax.Array) -> Any:
    def local(images: Any, texts: Any, scale: Any, bias: Any) -> tuple[jax.Array, ...]:
        def tile(rows: Any, columns: Any, state: Any, pairs: ring.Pairs) -> tuple[Any, Any]:
            logits, mask = static.dot(rows, columns.T) + bias, pairs.off_diagonal()
            grad = jnp.where(mask, jax.nn.sigmoid(logits), 0.0)
            terms = jnp.where(mask, jax.nn.softplus(logits), 0.0)
            value, bias_grad, image_grad = state
            state = (
                value + jnp.sum(terms, axis=1),
                bias_grad + jnp.sum(grad, axis=1),
                image_grad + static.dot(grad, columns),
            )
            return state, static.dot(grad.T, rows)

        zeros = jnp.zeros_like(images[..., 0])
        state, to_texts = ring.sweep(
            tile,
            scale * images,
            texts,
            (zeros, zeros, jnp.zeros_like(images)),
            jnp.zeros_like(texts),
            jnp.add,
            static.layout,
        )
        value, bias_grad, to_images = state
        scale_grad = jnp.vdot(images, to_images)
        return jnp.sum(value), scale * to_images, to_texts, scale_grad, jnp.sum(bias_grad)

    outputs = (False, True, True, False, False)
    value, *gradients = ring.sharded(local, static.layout, static.mesh, outputs)(*arrays)
    return value, tuple(gradients)


def _softplus_backward(
    static: Static, gradients: Any, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    return tuple(cotangent * gradient for gradient in gradients)


_softplus_sum.defvjp(_softplus_forward, _softplus_backward)
