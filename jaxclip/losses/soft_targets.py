"""Cross-entropy and Kullback-Leibler divergence to targets that are distributions.

For distillation: the target of a row is what a teacher's softmax says of all columns, not its own
column alone. They hold the matrices of logits and targets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxclip.losses import blockwise, ring
from jaxclip.losses._base import as_float, as_pairs, as_scalar, check_share, matmul
from jaxclip.losses.blockwise_targets import target_means
from jaxclip.losses.infonce import logsumexp_by
from jaxclip.shapes import check_shapes


class Teacher(NamedTuple):
    """Whose softmax is the target.

    Attributes:
      images: float[B, D'].
      texts: float[B, D'].
      scale: factor on their products.
    """

    images: jax.Array
    texts: jax.Array
    scale: jax.Array | float = 1.0


class SoftContrast(NamedTuple):
    """What :func:`soft_contrast` says of each row and column.

    Attributes:
      rows: float32[B], cross-entropy or divergence of the images' rows.
      columns: float32[B], of the texts' columns.
      sure_rows: bool[B], whether all teachers match the row with its own pair.
      sure_columns: bool[B].
    """

    rows: jax.Array
    columns: jax.Array
    sure_rows: jax.Array
    sure_columns: jax.Array


def products(a: jax.Array, b: jax.Array, *, precision: str = "highest") -> jax.Array:
    """a bᵀ in at least float32: cosines where the rows have unit length.

    Args:
      a: float[N, D].
      b: float[M, D].
      precision: as :func:`jaxclip.losses.softmax`.

    Returns:
      float32[N, M].

    Raises:
      ValueError: shapes that do not fit.
    """
    check_shapes("products", a=(a, "N D"), b=(b, "M D"))
    a, b = as_float(a, b)
    return matmul(a, b.T, precision)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of each row: -Σ_j targets_ij log softmax(logits)_ij.

    Args:
      logits: float32[B, N].
      targets: float32[B, N], rows that sum to 1.

    Returns:
      float32[B].

    Raises:
      ValueError: shapes that differ.
    """
    if jnp.shape(logits) != jnp.shape(targets):
        raise ValueError(
            f"logits {list(jnp.shape(logits))} and targets {list(jnp.shape(targets))} must be of "
            "one shape"
        )
    return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def soft_kl(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """KL(targets ‖ softmax(logits)) of each row: the cross-entropy less the targets' entropy.

    It has the cross-entropy's gradient with respect to the logits, and is 0 where both agree.

    Args:
      logits: float32[B, N].
      targets: float32[B, N], rows that sum to 1; zeros are allowed.

    Returns:
      float32[B].
    """
    entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets), axis=-1)
    return soft_cross_entropy(logits, targets) - entropy


def soft_contrast(
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array | float,
    teachers: Sequence[Teacher],
    *,
    own_share: float = 0.0,
    divergence: bool = False,
    precision: str = "highest",
    implementation: str = "plain",
    tile_size: int = blockwise.TILE_SIZE,
    mesh: Mesh | None = None,
) -> SoftContrast:
    """Logits scale · I Tᵀ against the mean of the teachers' softmaxes, over rows and over columns.

    Args:
      images: float[B, D], the global batch.
      texts: float[B, D].
      scale: factor on the products.
      teachers: one or several; no gradient goes into them.
      own_share: share of the pair itself in the target.
      divergence: the targets' entropy is taken off (:func:`soft_kl`); for one teacher.
      precision: of the matrix products, as :func:`jaxclip.losses.softmax`.
      implementation: ``"plain"``, or ``"blockwise"``: no matrix is held, and memory on a device is
        that of its rows.
      tile_size: rows and columns of the largest block of logits held at a time.
      mesh: mesh over which the batch is sharded, for ``"blockwise"``.

    Raises:
      ValueError: an unknown implementation, no teacher, or ``divergence`` with several.
    """
    if not teachers or (divergence and len(teachers) > 1):
        raise ValueError(f"{len(teachers)} teachers; soft_contrast takes some, a divergence one")
    check_share("soft_contrast", "own_share", own_share)
    images, texts = as_pairs("soft_contrast", images=images, texts=texts)
    for t in teachers:
        check_shapes(
            "soft_contrast", rows=(images, "B D"), images=(t.images, "B E"), texts=(t.texts, "B E")
        )
    scale = as_scalar("soft_contrast", "scale", scale, images.dtype)
    fixed = []
    for teacher in jax.lax.stop_gradient(list(teachers)):
        theirs_images, theirs_texts = as_float(teacher.images, teacher.texts)
        fixed.append(Teacher(theirs_images, theirs_texts, jnp.asarray(teacher.scale)))
    if implementation == "blockwise":
        static = blockwise.Static(ring.plan(len(images), tile_size, mesh), mesh, precision)
        lse = logsumexp_by(implementation, precision, tile_size, mesh)
        return _by_tiles(static, lse, images, texts, scale, fixed, own_share, divergence)
    logsumexp_by(implementation, precision, tile_size, mesh)  # refuses what there is not
    logits = scale * matmul(images, texts.T, precision)
    theirs = [t.scale * matmul(t.images, t.texts.T, precision) for t in fixed]
    loss = soft_kl if divergence else soft_cross_entropy
    values, sure = [], []
    for ours, all_theirs in ((logits, theirs), (logits.T, [each.T for each in theirs])):
        target = jnp.mean(jnp.stack([jax.nn.softmax(each) for each in all_theirs]), axis=0)
        target = own_share * jnp.eye(len(ours)) + (1.0 - own_share) * target
        values.append(loss(ours, target))
        own = [jnp.diagonal(each) >= jnp.max(each, axis=1) for each in all_theirs]
        sure.append(jnp.all(jnp.stack(own), axis=0))
    return SoftContrast(*values, *sure)


def _by_tiles(
    static: blockwise.Static,
    lse: Callable[..., tuple[jax.Array, ...]],
    images: jax.Array,
    texts: jax.Array,
    scale: jax.Array,
    teachers: Sequence[Teacher],
    own_share: float,
    divergence: bool,
) -> SoftContrast:
    share = 1.0 - own_share
    own = scale * jnp.sum(images * texts, axis=-1)
    values = [jnp.logaddexp(each, own) - own_share * own for each in lse(images, texts, scale)[:2]]
    sure = [jnp.ones(len(images), bool)] * 2
    for teacher in teachers:
        their_images = teacher.scale * teacher.images
        their_own = jnp.sum(their_images * teacher.texts, axis=-1)
        *off, row_max, column_max = lse(teacher.images, teacher.texts, teacher.scale)
        whole = [jnp.logaddexp(each, their_own) for each in off]
        given = (their_images, teacher.texts, *whole)
        means = target_means(static, images, texts, scale, given)
        one = jnp.ones((), their_images.dtype)
        entropies = target_means(static, *given[:2], one, given) if divergence else (0.0, 0.0)
        for side, peak in enumerate((row_max, column_max)):
            pair = jnp.exp(their_own - whole[side])  # the target of the pair itself
            values[side] -= share / len(teachers) * (means[side] + pair * own)
            sure[side] &= their_own >= peak
            if divergence:
                rest = entropies[side] + (jnp.log(max(share, 1e-30)) - whole[side]) * (1.0 - pair)
                whole_pair = own_share + share * pair
                values[side] += share * rest + jax.scipy.special.xlogy(whole_pair, whole_pair)
    return SoftContrast(*values, *sure)
