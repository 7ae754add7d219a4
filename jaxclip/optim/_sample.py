"""A random fraction of a tensor's elements, drawn anew from a seed whenever it is needed.

``kept`` of every ``group`` consecutive elements along the last axis: those at
``(offset + floor(i * group / kept)) mod group`` for ``i < kept``, with an offset drawn for each
group. So every element is chosen with the same probability, the number of chosen ones is fixed (jit
needs that), nothing but the seed need be kept, and on a sharded tensor each device draws and moves
its own part only. A choice without this structure would have to store an index for each chosen
element, and to gather the tensor.
"""

from __future__ import annotations

import dataclasses
import fractions
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Groups no larger than this: each chosen element costs one comparison for each in its group.
LARGEST_GROUP = 32


@dataclasses.dataclass(frozen=True)
class Sampling:
    """``kept`` of every ``group`` elements."""

    kept: int
    group: int

    @classmethod
    def of(cls, density: float) -> Sampling:
        """The nearest fraction with a group of at most :data:`LARGEST_GROUP`, but not zero."""
        fraction = fractions.Fraction(density).limit_denominator(LARGEST_GROUP)
        fraction = max(fraction, fractions.Fraction(1, LARGEST_GROUP))
        return cls(fraction.numerator, fraction.denominator)

    def applies(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is a matrix (or has more axes), and has something to leave out."""
        return len(shape) >= 2 and self.shape(shape)[-1] < shape[-1]

    def groups(self, length: int) -> int:
        """Number of groups on an axis, of which the last may be cut short."""
        return -(-length // self.group)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the chosen elements of a tensor."""
        return (*shape[:-1], self.groups(shape[-1]) * self.kept)

    def draw(self, seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Which elements of a tensor: bool[..., groups, kept, group], one true in each last axis.

        Args:
          seed: uint32.
          shape: of the tensor.
        """
        size = (*shape[:-1], self.groups(shape[-1]))
        # Modulo favours the first offsets by one part in 2**27 at most.
        group = np.uint32(self.group)
        offsets = jax.lax.rem(scrambled(scrambled(numbered(size)) ^ seed), group)
        steps = (np.arange(self.kept) * self.group // self.kept).astype(np.uint32)
        places = jax.lax.rem(offsets[..., None] + steps, group)
        return places[..., None] == np.arange(self.group, dtype=np.uint32)

    def take(self, tensor: jax.Array, chosen: jax.Array) -> jax.Array:
        """The chosen elements, in the order of the tensor's axes, zero beyond its end."""
        grouped = self._grouped(tensor)
        # One after the other, and not by a sum, for which XLA writes all the terms to memory.
        taken = jnp.zeros(chosen.shape[:-1], tensor.dtype)
        for place in range(self.group):
            taken = jnp.where(chosen[..., place], grouped[..., place, None], taken)
        return taken.reshape(self.shape(tensor.shape))

    def take_and_flag(self, tensor: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The chosen elements, and whether there is one in the group of each that is not finite.

        They are written to memory, for several to use them; by a reduction with two results, since
        for one XLA would write all its terms to memory.
        """
        grouped = jnp.broadcast_to(self._grouped(tensor)[..., None, :], chosen.shape)
        terms = jax.lax.select(chosen, grouped, jax.lax.full_like(grouped, 0))
        taken, flags = _sums_and_flags(terms, ~jnp.isfinite(grouped))
        shape = self.shape(tensor.shape)
        return taken.reshape(shape), flags.reshape(shape)

    def _grouped(self, tensor: jax.Array) -> jax.Array:
        """The last axis as groups, ``[..., groups, group]``, zeros beyond its end."""
        length = tensor.shape[-1]
        beyond = self.groups(length) * self.group - length
        if beyond:
            padding = [*[(0, 0, 0)] * (tensor.ndim - 1), (0, beyond, 0)]
            tensor = jax.lax.pad(tensor, jnp.zeros((), tensor.dtype), padding)
        return tensor.reshape(*tensor.shape[:-1], self.groups(length), self.group)

    def put(self, taken: jax.Array, chosen: jax.Array, length: int) -> jax.Array:
        """The chosen elements at their places in a tensor that is zero elsewhere.

        Args:
          taken: from :meth:`take`.
          chosen: from :meth:`draw`.
          length: of the tensor's last axis.
        """
        grouped = taken.reshape(*taken.shape[:-1], self.groups(length), self.kept, 1)
        places = jnp.sum(jnp.where(chosen, grouped, 0), axis=-2, dtype=taken.dtype)
        return places.reshape(*taken.shape[:-1], self.groups(length) * self.group)[..., :length]


@jax.custom_jvp
def _sums_and_flags(terms: jax.Array, spoilt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums along the last axis, and whether any is spoilt."""
    return tuple(
        jax.lax.reduce(
            (terms, spoilt),
            (jnp.zeros((), terms.dtype), np.False_),
            lambda x, y: (x[0] + y[0], x[1] | y[1]),
            (terms.ndim - 1,),
        )
    )


@_sums_and_flags.defjvp
def _sums_and_flags_jvp(primals: Any, tangents: Any) -> Any:
    """JAX differentiates no reduction with two results."""
    sums, flags = _sums_and_flags(*primals)
    return (sums, flags), (tangents[0].sum(-1), np.zeros(flags.shape, jax.dtypes.float0))


def numbered(shape: tuple[int, ...]) -> jax.Array:
    """The number of each element in row-major order, uint32, modulo 2**32.

    From each axis by itself, so that a device that holds a part of the tensor needs no other.
    """
    number = jnp.zeros(shape, jnp.uint32)
    for axis, length in enumerate(shape):
        number = number * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return number


def scrambled(number: jax.Array) -> jax.Array:
    """A hash of uint32: the finaliser of MurmurHash3, one to one, each bit of it from all bits.

    Not JAX's generator, of which a number costs some hundred operations: more to compile and to run
    than all else that is done to the element. Nobody has to be unable to guess which elements are
    chosen; they must only have nothing to do with each other or with the gradient.
    """
    number = (number ^ (number >> 16)) * np.uint32(0x85EBCA6B)
    number = (number ^ (number >> 13)) * np.uint32(0xC2B2AE35)
    return number ^ (number >> 16)
