"""Per-example gradients: trees whose tensors have a leading axis of examples, ``[B, ...]``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim import _base


def number_of_examples(leaves: Sequence[jax.Array]) -> int:
    """B, the same for all tensors; 1 for a tree without tensors, so that it may be divided by.

    Raises:
      ValueError: a tensor without a leading axis, or one of another length.
    """
    sizes = {leaf.shape[0] for leaf in leaves if leaf.ndim}
    if len(sizes) > 1 or not all(leaf.ndim for leaf in leaves):
        raise ValueError(
            "per-example gradients have one leading axis of examples, the same for all tensors; "
            f"got shapes {sorted({leaf.shape for leaf in leaves})}: compute them by "
            "jax.vmap(jax.grad(loss), in_axes=(None, 0))"
        )
    return next(iter(sizes), 1)


def norms(leaves: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """L2 norm of each example's gradient over all tensors, ``[B]``; squares may not overflow."""
    examples = number_of_examples(leaves)

    def over_tensors(scale: jax.Array) -> jax.Array:
        total = jnp.zeros((examples,), dtype)
        for leaf in leaves:
            scaled = jnp.abs(leaf).astype(dtype) / _along_examples(scale, leaf)
            total += jnp.sum(jnp.square(scaled), axis=tuple(range(1, leaf.ndim)))
        return scale * jnp.sqrt(total)

    def carefully() -> jax.Array:
        largest = jnp.zeros((examples,), dtype)
        for leaf in leaves:
            magnitude = jnp.abs(leaf).astype(dtype)
            peak = jnp.max(magnitude, axis=tuple(range(1, leaf.ndim)), initial=0.0)
            largest = jnp.maximum(largest, peak)
        return over_tensors(jnp.where(largest > 0, largest, 1.0))

    plain = over_tensors(jnp.ones((examples,), dtype))
    return jax.lax.cond(jnp.all(jnp.isfinite(plain)), lambda: plain, carefully)


def weighted_mean(leaf: jax.Array, weights: jax.Array, keep: jax.Array) -> jax.Array:
    """Mean over examples of weight times gradient, in the weights' dtype; zero unless ``keep``."""
    # As a product of vector and matrix: on CPUs XLA takes far longer for a mean over the leading
    # axis.
    total = jnp.tensordot(
        weights, leaf.astype(weights.dtype), axes=1, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.where(keep, total / leaf.shape[0], 0)


def clip_factors(norms: jax.Array, bound: jax.Array) -> jax.Array:
    """What multiplies each example's gradient so that its norm is at most the bound."""
    return jnp.where(norms > bound, _base.safe_divide(bound, norms, 1.0), 1.0).astype(norms.dtype)


def is_noisy(noise_multiplier: Any) -> bool:
    """Whether there may be noise: unless the multiplier is the number zero."""
    return not isinstance(noise_multiplier, (int, float)) or noise_multiplier > 0


def check_seed(name: str, seed: Any) -> None:
    """Refuse private noise without a seed: one that everybody knows hides nothing.

    Raises:
      TypeError: it is neither integer nor key.
      ValueError: there is none.
    """
    is_array = isinstance(seed, jax.Array | np.ndarray) and jnp.ndim(seed) == 0
    is_key = is_array and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    is_integer = is_array and jnp.issubdtype(seed.dtype, jnp.integer)
    is_integer |= isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if seed is not None and not (is_key or is_integer):
        raise TypeError(f"{name}.seed={seed!r} must be an integer or a key of jax.random.key")
    if isinstance(seed, int) and not -(2**63) <= seed < 2**63:
        raise ValueError(f"{name}.seed={seed} has more than 64 bits; seed=secrets.randbits(31)")
    if seed is None:
        raise ValueError(
            f"{name}.seed is required where there is noise, and must stay unknown to others; give "
            "one that is drawn: seed=secrets.randbits(31)"
        )


def normal_like(leaves: Sequence[jax.Array], seed: Any, count: jax.Array) -> list[jax.Array]:
    """Standard normal noise for a step, ``leaf.shape[1:]`` each, float32 at least.

    Of the seed (an integer or a key) and the step alone, so that no state holds a random key.
    """
    is_key = isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
    key = jax.random.fold_in(seed if is_key else jax.random.key(seed), count)
    keys = jax.random.split(key, max(1, len(leaves)))
    rows = _base.unpack_columns(list(jax.random.key_data(keys).T))
    implementation = str(jax.random.key_impl(keys))
    return [
        _normal(row, leaf.shape[1:], jnp.promote_types(leaf.dtype, jnp.float32), implementation)
        for row, leaf in zip(rows, leaves, strict=False)
    ]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key_data: jax.Array, shape: tuple[int, ...], dtype: Any, implementation: str) -> Any:
    """Standard normal numbers of a key's data."""
    key = jax.random.wrap_key_data(key_data, impl=implementation)
    return jax.random.normal(key, shape, dtype)


def _along_examples(vector: jax.Array, leaf: jax.Array) -> jax.Array:
    """``[B]`` to ``[B, 1, …]``, to multiply a tensor by."""
    return vector.reshape((-1,) + (1,) * (leaf.ndim - 1))
