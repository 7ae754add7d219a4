"""Small tensors of one type side by side in one array.

Most tensors of a transformer are biases and scales: few shapes, few elements, many of them. What is
done to all of one shape at once takes one kernel and not one a tensor: less to compile, and less to
launch. The copies that it takes are of no weight, for large tensors are left as they are.

Sums of a stack add up in another order than those of its tensors; largest values and counts are the
same to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxclip.optim import _unpack

# Elements up to which a tensor is small: the widest layers' biases, but no matrices.
LARGEST = 2**13

# From so many on they are put together. XLA merges a concatenation of up to eight arrays with what
# they are made from, in a kernel that asks at every element which of them it is from: that takes
# five times as long to compile as another. Of more arrays it is a plain copy.
LEAST = 9

# From so many on it pays to do the whole step together, which has to be taken apart again; and if
# the step of small tensors is one kernel.
ENOUGH = 32
ENOUGH_BY_ONE_KERNEL = 20


class Stacks:
    """How tensors are put together: alone, or with all small ones of their type."""

    def __init__(
        self,
        leaves: Sequence[jax.Array],
        kinds: Sequence[Hashable] | None = None,
        *,
        least: int = LEAST,
    ) -> None:
        """Look at the tensors.

        Args:
          leaves: tensors.
          kinds: only tensors of one kind are put together; ``None``: all are of one.
          least: how many are put together; fewer stay alone.
        """
        groups: dict[Hashable, list[int]] = {}
        for i, leaf in enumerate(leaves):
            # The whole type: what is sharded in different ways is not brought together.
            key = (jax.typeof(leaf), kinds and kinds[i]) if leaf.size <= LARGEST else i
            groups.setdefault(key, []).append(i)
        parts: list[list[int]] = []
        for group in groups.values():
            parts.extend([group] if len(group) >= least else [[i] for i in group])
        # First those that stay alone, whose numbers are looked up together; as they are, if all do.
        parts.sort(key=lambda part: (len(part) > 1, part[0]))
        self._groups = [np.asarray(part, np.int32) for part in parts]

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self._groups)

    @property
    def order(self) -> np.ndarray:
        """Places of the tensors in the order of the arrays, int32 ``[num_tensors]``."""
        return np.concatenate(self._groups)

    def arrays(self, leaves: Sequence[Any]) -> list[Any]:
        """The tensors as arrays: one's shape as it is, several's ``[k, *shape]``; or ``None``."""
        return [
            jnp.stack([leaves[i] for i in group])
            if len(group) > 1 and leaves[group[0]] is not None
            else leaves[group[0]]
            for group in self._groups
        ]

    def numbers(self, columns: Sequence[jax.Array]) -> list[jax.Array]:
        """Of ``c`` vectors ``[num_tensors]`` each array's: ``[c]``, or of several ``[c, k]``."""
        return self.numbers_of(_unpack.side_by_side(columns))

    def numbers_of(self, table: jax.Array) -> list[jax.Array]:
        """As :meth:`numbers`, of ``[c, num_tensors]``."""
        number = self.order.size
        if not np.array_equal(self.order, np.arange(number)):
            table = table.at[:, self.order].get(mode="promise_in_bounds")
        alone = sum(len(group) == 1 for group in self._groups)
        found: list[jax.Array] = _unpack.unpack_table(table[:, :alone])
        for group in self._groups[alone:]:
            found.append(table[:, alone : alone + len(group)])
            alone += len(group)
        return found

    def each(
        self,
        function: Callable[..., Any],
        *columns: Sequence[Any],
        numbers: Sequence[jax.Array] | None = None,
        static: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Any]:
        """A function of one tensor on each array, mapped over those of several.

        Args:
          function: of one element of each column, and the tensor's numbers if there are any.
          *columns: from :meth:`arrays`.
          numbers: from :meth:`numbers`.
          static: keyword arguments, a value for each tensor, the same for all of a kind.
        """
        found = []
        axes = [0] * len(columns)
        if numbers is not None:
            columns, axes = (*columns, numbers), [*axes, 1]
        for group, *of_one in zip(self._groups, *columns, strict=True):
            own = {name: values[group[0]] for name, values in (static or {}).items()}
            of_tensor = functools.partial(function, **own)
            if len(group) > 1:
                of_tensor = jax.vmap(of_tensor, in_axes=axes)
            found.append(of_tensor(*of_one))
        return found

    def vector(self, results: Sequence[jax.Array]) -> jax.Array:
        """What each array gave, scalars and ``[k]``, as ``[num_tensors]`` in the tensors' order."""
        return self.matrix([results])[0]

    def matrix(self, columns: Sequence[Sequence[jax.Array]]) -> jax.Array:
        """As :meth:`vector` for several results of one dtype: ``[len(columns), num_tensors]``."""
        if not columns:
            return jnp.zeros((0, self.order.size))
        joined = jnp.concatenate([_vector(part) for column in columns for part in column])
        order = np.argsort(self.order)
        at = np.concatenate([order + i * order.size for i in range(len(columns))])
        return _take(joined, at).reshape(len(columns), order.size)

    def scalars(self, results: Sequence[jax.Array]) -> list[jax.Array]:
        """What each array gave, scalars and ``[k]``, as one scalar a tensor."""
        found: dict[int, jax.Array] = {}
        for group, result in zip(self._groups, results, strict=True):
            members = _unpack.unpack(result) if len(group) > 1 else [result]
            found.update(zip(group.tolist(), members, strict=True))
        return [found[i] for i in range(len(found))]

    def joined(self, results: Sequence[jax.Array]) -> jax.Array:
        """What each array gave, scalars and ``[k]``, one after the other, perhaps zeros at the end.

        Returns:
          ``[rows, columns]``, or ``[num_tensors]`` if these are few: a reduction of it takes one
          kernel, where longer axes would take two.
        """
        parts = [_vector(result) for result in results]
        number = self.order.size
        if number <= _unpack.LONGEST_AXIS:
            return jnp.concatenate(parts)
        rows, columns = _unpack.table_of(number)
        if rows * columns > number:
            parts.append(jnp.zeros((rows * columns - number,), parts[0].dtype))
        return lax.optimization_barrier(jnp.concatenate(parts).reshape(rows, columns))

    def in_order(self, joined: jax.Array) -> jax.Array:
        """From :meth:`joined` to ``[num_tensors]`` in the tensors' order."""
        return _take(joined.reshape(-1), np.argsort(self.order))

    def tensors(
        self, columns: Sequence[Sequence[jax.Array]], settled: bool = False
    ) -> list[list[jax.Array]]:
        """What the arrays gave, as tensors: each column of arrays as a list of tensors.

        Args:
          columns: of arrays as from :meth:`arrays`.
          settled: as for ``_unpack.unstack``.
        """
        several = [i for i, group in enumerate(self._groups) if len(group) > 1]
        arrays = [column[i] for column in columns for i in several]
        parts = iter(_unpack.unstack(arrays, settled))
        found = []
        for column in columns:
            tensors: dict[int, jax.Array] = {}
            for group, result in zip(self._groups, column, strict=True):
                members = next(parts) if len(group) > 1 else [result]
                tensors.update(zip(group.tolist(), members, strict=True))
            found.append([tensors[i] for i in range(len(tensors))])
        return found


def _vector(result: jax.Array) -> jax.Array:
    """A vector as it is, a scalar as ``[1]``. (``jnp.atleast_1d`` is a function call to XLA.)"""
    return result if result.ndim else lax.reshape(result, (1,))


def _take(vector: jax.Array, at: Sequence[int] | np.ndarray) -> jax.Array:
    """Entries of a vector, by a slice if they are neighbours: itself if they are all."""
    at = np.asarray(at, np.int32)
    if at.size and np.array_equal(at, at[0] + np.arange(at.size)):
        return lax.slice_in_dim(vector, int(at[0]), int(at[0]) + at.size)
    return vector.at[at].get(mode="promise_in_bounds")
