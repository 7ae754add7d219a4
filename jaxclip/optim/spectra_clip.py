"""SPECTRA: bound the singular values of each matrix softly, by matrix products alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.optim import _base, _clipper, _places
from jaxclip.optim._inverse_roots import inverse_roots, product
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
    about twice ``optax.clip_by_global_norm``'s time on CPUs.

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
        if any(jnp.iscomplexobj(leaf) and _is_matrix(leaf) for leaf in leaves):
            raise TypeError(
                "spectra_clip: singular values of complex matrices are not bounded here; split "
                "them into real and imaginary parts, or hide them with optax.masked"
            )
        bound = now.value(threshold)
        sizes = _base.tensor_norms(leaves, now.dtype)
        seen, act = _factors(leaves, sizes, bound, number)
        matrices = np.asarray([_is_matrix(leaf) for leaf in leaves], bool)
        decide = functools.partial(_decide, bound=bound, matrices=matrices)
        return _clipper.Plan((sizes, seen), decide, act)

    return _clipper.clipper(SpectraClipState, rule, per_tensor=True)


def _decide(
    seen: tuple[jax.Array, jax.Array], state: SpectraClipState, bound: jax.Array, matrices: Any
) -> _clipper.Decision:
    """The decision: a matrix's norm is the bound on its largest singular value."""
    del state
    sizes, largest = seen
    spectral = _unit(sizes, bound) * jnp.sqrt(largest)
    norms = jnp.where(matrices & jnp.isfinite(sizes), spectral, sizes)
    return _clipper.Decision(norms, jnp.broadcast_to(bound, norms.shape), norms > bound)


def _is_matrix(leaf: jax.Array) -> bool:
    """Whether a tensor is a matrix or a stack of them."""
    return leaf.ndim >= 2 and leaf.size > 0


def _unit(norm: jax.Array, bound: jax.Array) -> jax.Array:
    """What a matrix of this norm is measured in: c, or one if that is infinite.

    If the norm is so much larger that squares may overflow, a power of two about 2^-28 times it: of
    what c then is to the square of the norm, float32 and float64 keep nothing.
    """
    bits = jnp.int64 if norm.dtype == jnp.float64 else jnp.int32
    # Infinity's pattern is that of the exponent's bits.
    exponent = np.asarray(np.inf, norm.dtype).view(bits)
    pattern = jax.lax.bitcast_convert_type(norm * 2.0**-28, bits) & exponent
    power = jax.lax.bitcast_convert_type(pattern, norm.dtype)
    return jnp.maximum(jnp.where(jnp.isinf(bound), 1.0, bound), power)


def _factors(
    leaves: list[jax.Array], sizes: jax.Array, bound: jax.Array, steps: int
) -> tuple[jax.Array, _clipper.Act]:
    """Looks at tensors and finds their factors.

    Args:
      leaves: tensors.
      sizes: their norms, ``[num_tensors]``.
      bound: c.
      steps: of Newton-Schulz.

    Returns:
      Bounds on the squares of matrices' singular values, in their units, ``[num_tensors]``; and how
      to multiply the tensors by their factors.
    """
    matrices = np.asarray([_is_matrix(leaf) for leaf in leaves], bool)
    # Less than any bound where there is no matrix.
    largest = jnp.asarray(np.where(matrices, 0, -1), sizes.dtype)
    if not leaves:
        return largest, lambda leaves: (leaves, {})

    def numbers_of(norms: jax.Array) -> tuple[jax.Array, jax.Array]:
        unit = _unit(norms, bound)
        last = jnp.where(jnp.isinf(bound), 1.0, bound / unit)
        last = jnp.where(matrices, last, _vector_factors(norms, bound))
        # Where the norm is not finite all is to become zero.
        finite = jnp.isfinite(norms)
        return jnp.where(finite, 1 / unit, jnp.nan), jnp.where(finite, last, jnp.nan)

    first, last = together(numbers_of, sizes, sizes.shape)
    groups = _groups(leaves)
    counts = [[_matrices(leaves[i]) for i in group] for group in groups]
    starts = np.zeros(len(leaves), int)
    for group, numbers in zip(groups, counts, strict=True):
        starts[group] = np.cumsum([0, *numbers])[:-1]
    places = _places.places(range(len(leaves)), starts)
    roots: list[tuple[jax.Array, jax.Array] | None] = [None] * len(leaves)
    found = []
    for group in groups:
        grams = jnp.concatenate([_gram(leaves[i], first, places[i]) for i in group])
        inverses, scales, bounds = inverse_roots(grams, jnp.isinf(bound), steps)
        found.append(bounds)
        for i in group:
            roots[i] = inverses, scales
    if found:
        members = np.repeat(np.concatenate(groups), np.concatenate(counts))
        largest = largest.at[members].max(jnp.concatenate(found).astype(largest.dtype))

    def act(leaves: list[jax.Array]) -> tuple[list[jax.Array], Mapping[str, Any]]:
        columns = leaves, roots, [last] * len(leaves), places
        return list(map(_multiply, *columns)), {}

    return largest, act


def _square(leaf: jax.Array) -> tuple[int, ...]:
    """Shape of the products of matrices ``[..., m, n]`` with their transposes, ``[..., m, m]``."""
    return (*leaf.shape[:-2], *[min(leaf.shape[-2:])] * 2)


def _matrices(leaf: jax.Array) -> int:
    """Number of matrices in a stack."""
    return math.prod(leaf.shape[:-2])


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Places of the matrices with the same shorter side, in groups of a bounded size.

    Their roots are found together: there is less to compile, and less to launch. Groups of one
    side are of one size if they can be, for then they have the same kernels.
    """
    sides: dict[int, list[int]] = {}
    for place, leaf in enumerate(leaves):
        if _is_matrix(leaf):
            sides.setdefault(min(leaf.shape[-2:]), []).append(place)
    groups: list[list[int]] = []
    for places in sides.values():
        sizes = [math.prod(_square(leaves[place])) for place in places]
        most = math.ceil(sum(sizes) / math.ceil(sum(sizes) / _LARGEST_GROUP))
        room = 0
        for place, size in zip(places, sizes, strict=True):
            if room < size:
                groups.append([])
                room = most
            groups[-1].append(place)
            room -= size
    return groups


def _vector_factors(norm: jax.Array, bound: jax.Array) -> jax.Array:
    """What vectors of these norms are multiplied by."""
    ratio = jnp.maximum(norm / bound, 1)
    # 1 / sqrt(1 + r^2) without the square that overflows.
    soft = jax.lax.rsqrt(jnp.square(1 / ratio) + 1) / ratio
    return jnp.where(norm > bound, soft, 1.0).astype(norm.dtype)


@jax.jit  # traced once a shape
def _gram(leaf: jax.Array, numbers: jax.Array, place: jax.Array) -> jax.Array:
    """Products of scaled matrices ``[..., m, n]`` with their transposes, ``[b, m, m]``.

    Args:
      leaf: matrix or stack of them.
      numbers: ``[num_tensors]``, NaN for a matrix that is to be zero.
      place: of the tensor, and of its first matrix in its group, see ``_places.places``.
    """
    scaled = _scaled(leaf, numbers, place)
    axes = (-1, -1) if _is_wide(leaf) else (-2, -2)
    return product(scaled, scaled, axes).reshape(-1, *_square(leaf)[-2:])


@jax.jit  # traced once a shape
def _multiply(
    leaf: jax.Array,
    root: tuple[jax.Array, jax.Array] | None,
    numbers: jax.Array,
    place: jax.Array,
) -> jax.Array:
    """A tensor times its number, zero where that is NaN; and a matrix times its inverse root.

    Args:
      leaf: tensor.
      root: the inverse roots of the matrix's group ``[k, m, m]`` and their factors ``[k]``.
      numbers: ``[num_tensors]``.
      place: see :func:`_gram`.
    """
    out = leaf
    if root is not None:
        own = _own_root(*root, place, _square(leaf))
        wide = leaf.astype(own.dtype)
        # The root is symmetric.
        out = product(own, wide) if _is_wide(leaf) else product(wide, own)
    # By the same kernel that scales a matrix for its product with itself.
    return _scaled(out, numbers, place).astype(leaf.dtype)


def _scaled(leaf: jax.Array, numbers: jax.Array, place: jax.Array) -> jax.Array:
    """A tensor times its number, zero where that is NaN."""
    number = _places.at(numbers, place)
    return _base.rescale(_base.widened(leaf, number.dtype), number, number == number)


def _own_root(
    inverses: jax.Array, scales: jax.Array, place: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """A tensor's part of its group's roots, of a shape ``[..., m, m]``."""
    start = _places.told(place, 1)

    def own(array: jax.Array) -> jax.Array:
        starts = (start, *[jnp.int32(0)] * (array.ndim - 1))
        size = (math.prod(shape[:-2]), *array.shape[1:])
        return jax.lax.dynamic_slice(array, starts, size, allow_negative_indices=False)

    return (own(inverses) * own(scales)[:, None, None]).reshape(shape)


def _is_wide(leaf: jax.Array) -> bool:
    """Whether matrices have no more rows than columns."""
    return bool(leaf.shape[-2] <= leaf.shape[-1])
