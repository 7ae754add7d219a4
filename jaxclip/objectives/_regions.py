"""What methods on regions share: pooling in boxes, distances of boxes, a contrast of regions."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip import fields as field_lib
from jaxclip.objectives._base import Metrics

BOXES, TEXTS = "boxes", "regions/text"
_HIDDEN = -1e9  # a logit that no softmax sees; finite, so that a row of nothing else stays finite


def region_fields(count: int, *, boxes: bool = True) -> dict[str, field_lib.Field]:
    """Boxes and a text for each, or the texts alone."""
    texts: dict[str, field_lib.Field] = {TEXTS: field_lib.RegionTexts(count)}
    return {BOXES: field_lib.Boxes(count), **texts} if boxes else texts


def areas(boxes: jax.Array) -> jax.Array:
    """float32[...] of boxes [..., 4] (x0, y0, x1, y1)."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def box_pool(tokens: jax.Array, boxes: jax.Array) -> jax.Array:
    """The mean of patches in boxes, each weighted by the area that a box has of it.

    Differentiable in both. A box without area gives 0, one of the whole picture the plain mean.

    Args:
      tokens: [B, N, C], the patches of a square grid, row by row.
      boxes: float32[B, R, 4] in [0, 1].

    Returns:
      float32[B, R, C].
    """
    side = grid_side(tokens.shape[1])
    edges = jnp.arange(side + 1, dtype=jnp.float32) / side

    def shares(low: jax.Array, high: jax.Array) -> jax.Array:
        """[B, R] ends -> [B, R, side]: the overlap with each row or column."""
        top = jnp.minimum(high[..., None], edges[1:])
        return jnp.maximum(top - jnp.maximum(low[..., None], edges[:-1]), 0.0)

    across, down = (shares(boxes[..., k], boxes[..., k + 2]) for k in (0, 1))
    weights = (down[..., :, None] * across[..., None, :]).reshape(*boxes.shape[:2], -1)
    weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-12)
    return jnp.einsum("brn,bnc->brc", weights, tokens.astype(jnp.float32))


def grid_side(count: int) -> int:
    """Patches along a side.

    Raises:
      ValueError: they are no square.
    """
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(f"{count} patches are no square grid; methods on regions need one")
    return side


def windows(count: int) -> jax.Array:
    """float32[count * count, 4]: the cells of a grid over the picture."""
    low = np.arange(count) / count
    boxes = [(x, y, x + 1 / count, y + 1 / count) for y, x in itertools.product(low, low)]
    return jnp.asarray(boxes, jnp.float32)


def corners(boxes: jax.Array) -> jax.Array:
    """[..., 4] (centre x, centre y, width, height) -> [..., 4] (x0, y0, x1, y1)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised intersection over union (Rezatofighi et al., 2019), in [-1, 1].

    Args:
      a: float32[..., 4], (x0, y0, x1, y1).
      b: broadcast against it.
    """
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    inter = areas(jnp.concatenate([low, high], -1))
    union = areas(a) + areas(b) - inter
    around = areas(
        jnp.concatenate(
            [jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:])], -1
        )
    )
    iou = inter / jnp.maximum(union, 1e-9)
    return iou - (around - union) / jnp.maximum(around, 1e-9)


def box_loss(found: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """L1 + (1 - GIoU), the mean over valid boxes: float32[]."""
    valid = valid.astype(jnp.float32)
    each = jnp.abs(found - boxes).sum(-1) + 1.0 - giou(found, boxes)
    return (each * valid).sum() / jnp.maximum(valid.sum(), 1.0)


def valid_regions(boxes: jax.Array, tokens: jax.Array) -> jax.Array:
    """bool[B, R]: those with a box in the picture and a text.

    Args:
      boxes: float32[B, R, 4].
      tokens: int32[B, R, L], 0 for padding.
    """
    return (areas(boxes) > 0) & (tokens != 0).any(-1)


def text_numbers(tokens: jax.Array) -> jax.Array:
    """uint32[...] of token rows [..., L]: equal for equal rows, else different but by chance."""
    length = tokens.shape[-1]
    factors = np.random.default_rng(0).integers(1, 2**31, length, dtype=np.uint32) * 2 + 1
    mixed = (tokens.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)) * jnp.asarray(factors)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA6B)
    return mixed.sum(-1, dtype=jnp.uint32)


def region_contrast(
    regions: jax.Array,
    texts: jax.Array,
    valid: jax.Array,
    numbers: jax.Array,
    scale: jax.Array,
    *,
    both: bool = True,
) -> tuple[jax.Array, Metrics]:
    """InfoNCE of regions and their texts over the global batch.

    The same text of two regions is neither a positive nor a negative of the other: it is left out
    of the denominator. Holds the matrix of logits.

    Args:
      regions: float32[M, D], unit rows.
      texts: float32[M, D].
      valid: bool[M].
      numbers: uint32[M] of :func:`text_numbers`.
      scale: float32[], factor on cosines.
      both: rows and columns, else each region's row alone.

    Returns:
      ``(float32[], metrics)``; 0 without any valid region.
    """
    own = jnp.eye(len(valid), dtype=bool)
    equal = numbers[:, None] == numbers[None, :]
    seen = (valid[:, None] & valid[None, :] & ~equal) | own
    logits = jnp.where(seen, scale * regions @ texts.T, _HIDDEN)
    weight = valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)

    def mean(logits: jax.Array) -> jax.Array:
        nll = jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits)
        return (nll * weight).sum() / count

    loss = (mean(logits) + mean(logits.T)) / 2 if both else mean(logits)
    right = (jnp.argmax(logits, axis=1) == jnp.arange(len(valid))) * weight
    return loss, {"region_accuracy": right.sum() / count, "regions": weight.sum()}


def flat(array: Any) -> Any:
    """[B, R, ...] -> [B * R, ...]."""
    return array.reshape(-1, *array.shape[2:])
