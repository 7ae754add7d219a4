"""SPECTRA: bound the singular values of each matrix softly, by matrix products alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip.optim import _base, _clipper


class SpectraClipState(NamedTuple):
    """State of :func:`spectra_clip`; vectors have one entry a tensor.

    Attributes:
      count: int32 scalar, number of updates.
      norm: upper bound on the largest singular value in the last step (a vector's norm).
      threshold: what singular values stay under.
      clipped: bool, was that bound above the threshold.
      nonfinite_count: int32, number of updates with a NaN or infinite norm.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as everywhere in optax
    norm: jax.Array
    threshold: jax.Array
    clipped: jax.Array
    nonfinite_count: jax.Array


def spectra_clip(
    threshold: _base.Hyperparameter, steps: int = 10
) -> optax.GradientTransformationExtraArgs:
    r"""Maps singular values σ to :math:`\sigma / \sqrt{1 + \sigma^2 / c^2}`, always below c.

    For every matrix,

    .. math::

      U \leftarrow (I + U U^T / c^2)^{-1/2}\, U,

    with c the ``threshold``; singular vectors stay, values far below c, too. The inverse root is
    that of ``steps`` coupled Newton-Schulz steps on :math:`A / \alpha`, for
    :math:`A = I + U U^T / c^2` and :math:`\alpha` a bound on its eigenvalues (the smaller of the
    Gershgorin and the Frobenius bound of :math:`U U^T / c^2`, plus one): :math:`Y = A / \alpha` and
    :math:`Z = I` at first, then :math:`T = (3I - ZY) / 2,\; Y \leftarrow YT,\; Z \leftarrow TZ`.
    A vector or scalar of norm n > c gets the norm :math:`n / \sqrt{1 + n^2 / c^2}`; others are left
    alone. Tensors with more than two axes are stacks of matrices (scanned layers, the taps of a
    convolution), each bounded by itself.

    It stands before the optimizer, on gradients (``threshold=0.1`` in the authors' experiments), or
    between direction and learning rate (``optax.chain(optax.scale_by_adam(), spectra_clip(10.0),
    optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(schedule))``); they advise against
    both at once. In the warm-up they keep c times the learning rate constant: give a schedule.
    Their wrapper of optimizers also multiplies the result by the root of out/in where there are
    more outputs than inputs, and leaves vectors out; not so here.

    Ten steps are enough for a largest singular value of up to about 30 c. Beyond that the small
    ones shrink, too, the more the larger the largest is: a spike of one direction holds back the
    others in its step. That is so in the authors' code; ``steps=16`` is good for some 300 c.

    The norm reported is the bound on the largest singular value, which may be a few times as large.
    Matrix products are done in float32. State: the report. Cost: 3 ``steps`` products of square
    matrices of each matrix's shorter side, and two of the matrix with its transpose or such a
    square: cheap where batches are large, as with Muon. Sharded matrices exchange those squares.

    Args:
      threshold: c, in units of the gradient (or update).
      steps: of the Newton-Schulz iteration. Static.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`SpectraClipState`.

    Raises:
      ValueError: a number out of its range.
      TypeError: ``steps`` is not known when tracing.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jaxclip import optim
      >>> tx = optim.spectra_clip(3.0)
      >>> update = jnp.diag(jnp.asarray([3.0, 0.03]))
      >>> out, state = tx.update(update, tx.init(update))
      >>> [round(float(x), 4) for x in jnp.diag(out)], state.clipped.tolist()
      ([2.1213, 0.03], [False])

    References:
      SPECTRA: `arXiv 2603.14315 <https://arxiv.org/abs/2603.14315>`_, 2026; code:
      github.com/mlolab/llm-spectral-clipping.
    """
    _base.check_number("spectra_clip.threshold", threshold, above=0)
    number = _base.static_integer("spectra_clip.steps", steps, 1)

    def rule(
        leaves: list[jax.Array], state: SpectraClipState, now: _clipper.Context
    ) -> _clipper.Plan:
        bound = now.value(threshold)
        sizes = _base.tensor_norms(leaves, now.dtype)
        found = [
            _matrix_factor(leaf, size, bound, number)
            if _is_matrix(leaf)
            else _vector_factor(size, bound)
            for leaf, size in zip(leaves, _base.unpack(sizes), strict=True)
        ]
        norms = jnp.stack([norm for _, norm in found]) if found else sizes
        factors = [factor for factor, _ in found]
        return _clipper.Plan(
            norms,
            lambda norms, _: _clipper.Decision(
                norms, jnp.broadcast_to(bound, norms.shape), norms > bound
            ),
            lambda leaves: _clipper.each(_multiply)(leaves, factors),
        )

    return _clipper.clipper(SpectraClipState, rule, per_tensor=True)


def _is_matrix(leaf: jax.Array) -> bool:
    """Whether a tensor is a matrix or a stack of them."""
    return leaf.ndim >= 2 and leaf.size > 0


def _vector_factor(norm: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a vector is multiplied by (NaN for a norm that is not finite), and the norm."""
    ratio = jnp.maximum(norm / bound, 1)
    # 1 / sqrt(1 + r^2) without the square that overflows.
    soft = jax.lax.rsqrt(jnp.square(1 / ratio) + 1) / ratio
    factor = jnp.where(norm > bound, soft, 1.0).astype(norm.dtype)
    return jnp.where(jnp.isfinite(norm), factor, jnp.nan), norm


def _matrix_factor(
    leaf: jax.Array, norm: jax.Array, bound: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """What matrices ``[..., m, n]`` are multiplied by on their shorter side.

    Args:
      leaf: one matrix or a stack.
      norm: of all together.
      bound: c.
      steps: of Newton-Schulz.

    Returns:
      Square matrices (NaN for a norm that is not finite), and the largest of the bounds on singular
      values.
    """
    unbounded = jnp.isinf(bound)
    limit = jnp.where(unbounded, 1.0, bound)
    # Everything relative to the norm (or c, if that is larger): squares of 1e30 overflow float32.
    unit = jnp.maximum(norm, limit)
    wide = _widened(leaf.astype(norm.dtype) / unit)
    gram = _product(wide, jnp.swapaxes(wide, -1, -2))
    gershgorin = jnp.max(jnp.sum(jnp.abs(gram), axis=-1), axis=-1)
    largest = jnp.minimum(gershgorin, jnp.sqrt(jnp.sum(jnp.square(gram), axis=(-2, -1))))
    share = jnp.square(limit / unit)
    total = (share + largest)[..., None, None]
    eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
    inverse = _inverse_root((share * eye + gram) / total, steps)
    factor = jnp.where(unbounded, eye, limit / unit * inverse / jnp.sqrt(total))
    finite = jnp.isfinite(norm)
    found = unit * jnp.sqrt(jnp.max(largest))
    return jnp.where(finite, factor, jnp.nan), jnp.where(finite, found, norm)


def _multiply(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """A tensor times its factor, zero where that is NaN."""
    if not _is_matrix(leaf):
        return _base.rescale(leaf, factor, factor == factor)
    out = _widened(_product(factor, _widened(leaf.astype(factor.dtype))), like=leaf)
    finite = factor[(0,) * factor.ndim] == factor[(0,) * factor.ndim]
    return jnp.where(finite, out, 0).astype(leaf.dtype)


def _widened(leaf: jax.Array, like: jax.Array | None = None) -> jax.Array:
    """Matrices with no more rows than columns; turned if those of ``like`` would be."""
    shape = (leaf if like is None else like).shape
    return jnp.swapaxes(leaf, -1, -2) if shape[-2] > shape[-1] else leaf


def _inverse_root(matrix: jax.Array, steps: int) -> jax.Array:
    """Inverse square root of symmetric matrices ``[..., m, m]`` with eigenvalues in (0, 1]."""
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)

    def step(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = pair
        mean = 1.5 * eye - 0.5 * _product(inverse, root)
        return _product(root, mean), _product(mean, inverse)

    return jax.lax.fori_loop(0, steps, step, (matrix, eye))[1]


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in full float32, which accelerators would else cut to bfloat16."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
