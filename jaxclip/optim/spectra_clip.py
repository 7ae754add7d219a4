"""SPECTRA: bound the singular values of each matrix softly, by matrix products alone."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _clipper
from jaxclip.optim._norms import short_axes
from jaxclip.optim._together import together

# Elements of the matrices whose roots are found together: 16 of 256 x 256. Products of larger ones
# are slower in a stack than one by one, by a fifth on CPUs.
_LARGEST_GROUP = 2**20


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
    Squares of one size are held together, in groups of up to 4 MB (or one tensor's). Compiles in
    three times ``optax.clip_by_global_norm``'s time on CPUs.

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
        norms, columns = _factors(leaves, sizes, bound, number)
        return _clipper.Plan(
            norms,
            lambda norms, _: _clipper.Decision(
                norms, jnp.broadcast_to(bound, norms.shape), norms > bound
            ),
            lambda leaves: _clipper.each(_multiply)(leaves, *columns),
        )

    return _clipper.clipper(SpectraClipState, rule, per_tensor=True)


def _is_matrix(leaf: jax.Array) -> bool:
    """Whether a tensor is a matrix or a stack of them."""
    return leaf.ndim >= 2 and leaf.size > 0


def _factors(
    leaves: list[jax.Array], sizes: jax.Array, bound: jax.Array, steps: int
) -> tuple[jax.Array, tuple[list[jax.Array], list[jax.Array]]]:
    """The bounds on singular values ``[num_tensors]``, and the numbers of :func:`_multiply`.

    Args:
      leaves: tensors.
      sizes: their norms, ``[num_tensors]``.
      bound: c.
      steps: of Newton-Schulz.
    """
    if not leaves:
        return sizes, ([], [])
    # Everything relative to the norm (or c, if that is larger): squares of 1e30 overflow float32.
    units = jnp.maximum(sizes, jnp.where(jnp.isinf(bound), 1.0, bound))
    groups = _groups(leaves)
    members = [np.repeat(places, [_matrices(leaves[i]) for i in places]) for places in groups]
    # Where in its group each tensor's matrices begin; not as a constant of its kernels.
    starts = np.zeros(len(leaves))
    for places, at in zip(groups, members, strict=True):
        starts[places] = np.searchsorted(at, places)
    factors_of = functools.partial(_vector_factors, bound=bound)
    columns = together(
        lambda given: (factors_of(given[0]), 1 / given[1]), (sizes, units), sizes.shape
    )
    rows = _base.unpack_columns([*columns, jnp.asarray(starts, sizes.dtype)])
    factors, norms = [row[0] for row in rows], []
    for places, at in zip(groups, members, strict=True):
        grams = jnp.concatenate([_gram(leaves[i], rows[i][1]) for i in places])
        inverses, scales, largest = _inverse_roots(grams, units[at], bound, steps)
        norms.append(largest)
        for i in places:
            factors[i] = _part(inverses, scales, rows[i][2], shape=_square(leaves[i]))
    if norms:
        known = np.asarray([not _is_matrix(leaf) for leaf in leaves])
        sizes = jnp.where(known, sizes, 0).at[np.concatenate(members)].max(jnp.concatenate(norms))
    return sizes, (factors, [row[0] for row in rows])


def _square(leaf: jax.Array) -> tuple[int, ...]:
    """Shape of the products of matrices ``[..., m, n]`` with their transposes, ``[..., m, m]``."""
    return (*leaf.shape[:-2], *[min(leaf.shape[-2:])] * 2)


def _matrices(leaf: jax.Array) -> int:
    """Number of matrices in a stack."""
    return math.prod(leaf.shape[:-2])


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Places of the matrices with the same shorter side, in groups of a bounded size.

    Their roots are found together: there is less to compile, and less to launch.
    """
    groups: dict[Any, list[list[int]]] = {}
    room: dict[Any, int] = {}
    for place, leaf in enumerate(leaves):
        if not _is_matrix(leaf):
            continue
        key, size = min(leaf.shape[-2:]), math.prod(_square(leaf))
        if room.get(key, 0) < size:
            groups.setdefault(key, []).append([])
            room[key] = _LARGEST_GROUP
        groups[key][-1].append(place)
        room[key] -= size
    return [places for own in groups.values() for places in own]


def _vector_factors(norm: jax.Array, bound: jax.Array) -> jax.Array:
    """What vectors of these norms are multiplied by; NaN for a norm that is not finite."""
    ratio = jnp.maximum(norm / bound, 1)
    # 1 / sqrt(1 + r^2) without the square that overflows.
    soft = jax.lax.rsqrt(jnp.square(1 / ratio) + 1) / ratio
    factor = jnp.where(norm > bound, soft, 1.0).astype(norm.dtype)
    return jnp.where(jnp.isfinite(norm), factor, jnp.nan)


@jax.jit  # traced once a shape
def _gram(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    """Products of scaled matrices ``[..., m, n]`` with their transposes, ``[b, m, m]``."""
    wide = _widened(leaf.astype(scale.dtype) * scale)
    return _product(wide, jnp.swapaxes(wide, -1, -2)).reshape(-1, *_square(leaf)[-2:])


def _inverse_roots(
    grams: jax.Array, units: jax.Array, bound: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Inverse roots of ``I + U Uᵀ / c²``.

    Args:
      grams: of U over its unit, ``[k, m, m]``.
      units: ``[k]``, not finite for those to be left out.
      bound: c; if it is infinite the roots are ones.
      steps: of Newton-Schulz.

    Returns:
      Matrices ``[k, m, m]`` and their factors ``[k]``, which together are the roots; and bounds on
      the singular values of U, ``[k]``.
    """
    sums = short_axes(jnp.sum(jnp.abs(grams), axis=-1), kept=1)
    rows = jnp.max(sums, axis=range(1, sums.ndim))
    squares = jnp.sum(jnp.square(grams), axis=(-2, -1))
    settle = functools.partial(_settle, bound=bound)
    ones, weights, scales, largest = together(settle, (units, rows, squares), units.shape)
    eye = jnp.eye(grams.shape[-1], dtype=grams.dtype)
    matrices = ones[:, None, None] * eye + weights[:, None, None] * grams
    return _inverse_root(matrices, steps), scales, largest


def _settle(
    inputs: tuple[jax.Array, jax.Array, jax.Array], *, bound: jax.Array
) -> tuple[jax.Array, ...]:
    """Weights of ones and of a matrix in what the root is taken of, the root's factor; the bound.

    Args:
      inputs: unit, largest sum of a row (Gershgorin's bound), and sum of squares of a matrix.
      bound: c.
    """
    units, rows, squares = inputs
    unbounded, finite = jnp.isinf(bound), jnp.isfinite(units)
    shares = jnp.where(unbounded, 1.0, bound) / units
    largest = jnp.minimum(rows, jnp.sqrt(squares))
    inverse = 1 / (jnp.square(shares) + largest)
    scales = jnp.where(unbounded, 1.0, shares * jnp.sqrt(inverse))
    return (
        jnp.where(unbounded, 1.0, jnp.square(shares) * inverse),
        jnp.where(unbounded, 0.0, inverse),
        jnp.where(finite, scales, jnp.nan),
        jnp.where(finite, units * jnp.sqrt(largest), units),
    )


@functools.partial(jax.jit, static_argnames="shape")  # traced once a shape
def _part(
    inverses: jax.Array, scales: jax.Array, start: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """One tensor's factor.

    Args:
      inverses: ``[k, m, m]``.
      scales: ``[k]``, see :func:`_inverse_roots`.
      start: place of the tensor's first matrix.
      shape: of its squares.
    """

    def own(array: jax.Array) -> jax.Array:
        starts = (start.astype(jnp.int32), *[jnp.int32(0)] * (array.ndim - 1))
        size = (math.prod(shape[:-2]), *array.shape[1:])
        return jax.lax.dynamic_slice(array, starts, size, allow_negative_indices=False)

    return (own(inverses) * own(scales)[:, None, None]).reshape(shape)


def _multiply(leaf: jax.Array, factor: jax.Array, number: jax.Array) -> jax.Array:
    """A tensor times its factor (for a vector the number); zero where the number is NaN."""
    keep = number == number
    if not _is_matrix(leaf):
        return _base.rescale(leaf, factor, keep)
    out = _widened(_product(factor, _widened(leaf.astype(factor.dtype))), like=leaf)
    return _base.where(keep, out, 0.0).astype(leaf.dtype)


def _widened(leaf: jax.Array, like: jax.Array | None = None) -> jax.Array:
    """Matrices with no more rows than columns; turned if those of ``like`` would be."""
    shape = (leaf if like is None else like).shape
    return jnp.swapaxes(leaf, -1, -2) if shape[-2] > shape[-1] else leaf


def _inverse_root(matrix: jax.Array, steps: int) -> jax.Array:
    """Inverse square roots of symmetric matrices ``[k, m, m]`` with eigenvalues in (0, 1]."""

    def mean(product: jax.Array) -> jax.Array:
        # Made here, and not once for all steps: that would be an array to keep.
        return 1.5 * jnp.eye(product.shape[-1], dtype=product.dtype) - 0.5 * product

    def step(_: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        root, inverse = pair
        factor = mean(_product(inverse, root))
        return _product(root, factor), _product(factor, inverse)

    # The first step, from Z = I.
    first = mean(matrix)
    return jax.lax.fori_loop(1, steps, step, (_product(matrix, first), first))[1]


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """A matrix product in full float32, which accelerators would else cut to bfloat16."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
