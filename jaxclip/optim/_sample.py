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

    def hashes(self, shape: tuple[int, ...]) -> jax.Array:
        """Uint32, one for each group of a tensor of a shape; the same for all such tensors."""
        return scrambled(numbered((*shape[:-1], self.groups(shape[-1]))))

    def draw(self, seed: jax.Array, hashes: jax.Array) -> jax.Array:
        """The chosen elements' places in their groups, uint32 of :meth:`shape`.

        Args:
          seed: uint32.
          hashes: from :meth:`hashes`.
        """
        # Modulo favours the first offsets by one part in 2**27 at most.
        group = np.uint32(self.group)
        offsets = jax.lax.rem(scrambled(hashes ^ seed), group)
        if self.kept == 1:
            return offsets
        steps = (np.arange(self.kept) * self.group // self.kept).astype(np.uint32)
        places = jax.lax.rem(offsets[..., None] + steps, group)
        return places.reshape(*hashes.shape[:-1], hashes.shape[-1] * self.kept)

    def take(self, tensor: jax.Array, places: jax.Array) -> jax.Array:
        """The chosen elements, in the order of the tensor's axes, zero beyond its end."""
        grouped = self._grouped(tensor)
        # One after the other, and not by a sum, for which XLA writes all the terms to memory.
        taken = jnp.zeros(places.shape, tensor.dtype)
        for place in range(self.group):
            taken = jnp.where(places == place, grouped[..., place], taken)
        return taken

    def take_finite(self, tensor: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The chosen elements, not finite if any of their group is not; and their places, uint8.

        They are written to memory, for several to use them; by a reduction with two results, since
        for one XLA would write all its terms to memory. The places: to put something back needs no
        second draw then, which is longer than all else that it does.
        """
        grouped = self._grouped(tensor)
        # Zero times what is not finite is NaN.
        terms = jax.lax.select(self._chosen(places), grouped, grouped * 0)
        taken: tuple[jax.Array, jax.Array] = _sums_and_places(
            terms, _along_last(places.astype(jnp.uint8), self.group)
        )
        return taken

    def put(self, taken: jax.Array, places: jax.Array, length: int) -> jax.Array:
        """The chosen elements at their places in a tensor that is zero elsewhere.

        Args:
          taken: from :meth:`take`.
          places: from :meth:`draw` or :meth:`take_finite`.
          length: of the tensor's last axis.
        """
        values = _along_last(taken, self.group)
        values = jax.lax.select(self._chosen(places), values, jax.lax.full_like(values, 0))
        if self.kept > 1:
            shape = (*taken.shape[:-1], self.groups(length), self.kept, self.group)
            values = jnp.sum(values.reshape(shape), axis=-2, dtype=taken.dtype)
        return values.reshape(*taken.shape[:-1], self.groups(length) * self.group)[..., :length]

    def _chosen(self, places: jax.Array) -> jax.Array:
        """Bool ``[*places.shape, group]``, one true in each last axis."""
        wide = _along_last(places, self.group)
        return wide == jax.lax.broadcasted_iota(wide.dtype, wide.shape, places.ndim)

    def _grouped(self, tensor: jax.Array) -> jax.Array:
        """The group of each chosen element, ``[..., group]``, zeros beyond the tensor's end."""
        *lead, length = tensor.shape
        groups = self.groups(length)
        beyond = groups * self.group - length
        if beyond:
            padding = [*[(0, 0, 0)] * len(lead), (0, beyond, 0)]
            tensor = jax.lax.pad(tensor, jnp.zeros((), tensor.dtype), padding)
        grouped = tensor.reshape(*lead, groups, 1, self.group)
        wide = jnp.broadcast_to(grouped, (*lead, groups, self.kept, self.group))
        return wide.reshape(*lead, groups * self.kept, self.group)


def _along_last(array: jax.Array, length: int) -> jax.Array:
    """An array along one more axis at the end."""
    return jax.lax.broadcast_in_dim(array, (*array.shape, length), range(array.ndim))


@jax.custom_jvp
def _sums_and_places(terms: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums along the last axis, and the largest of the places."""
    return tuple(
        jax.lax.reduce(
            (terms, places),
            (np.zeros((), terms.dtype), np.zeros((), places.dtype)),
            lambda x, y: (x[0] + y[0], jax.lax.max(x[1], y[1])),
            (terms.ndim - 1,),
        )
    )


@_sums_and_places.defjvp
def _sums_and_places_jvp(primals: Any, tangents: Any) -> Any:
    """JAX differentiates no reduction with two results."""
    sums, places = _sums_and_places(*primals)
    return (sums, places), (tangents[0].sum(-1), np.zeros(places.shape, jax.dtypes.float0))


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
