"""Bring parameters together that are sharded over ``fsdp``, where they are used.

Left to itself, XLA may as well keep such a parameter in pieces and send the activations round
instead: for the wide batches of contrastive training tens of times as many bytes.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

# Layers cast these to the compute dtype anyway; cast before they are sent they are half as long.
_CAST = ("kernel", "embedding")


def gather(params: Any, shardings: Any, dtype: Any, axis: str = "fsdp") -> Any:
    """Parameters as a layer uses them: whole along ``axis``, matrices in the compute dtype.

    The gradient goes the other way: summed over the devices, and cut where the state is cut.

    Args:
      params: tree of arrays, traced.
      shardings: tree of their :class:`jax.sharding.NamedSharding`.
      dtype: compute dtype.
      axis: mesh axis to gather over; other axes stay as they are.

    Returns:
      The same tree. Parameters that are not sharded over the axis are left alone.
    """

    def one(path: tuple[Any, ...], leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        entries = [_without(entry, axis) for entry in sharding.spec]
        if entries == list(sharding.spec) or sharding.mesh.shape[axis] == 1:
            return leaf
        if jax.tree_util.keystr(path[-1:], simple=True) in _CAST:
            leaf = leaf.astype(dtype)
        whole = NamedSharding(sharding.mesh, PartitionSpec(*entries))
        return jax.lax.with_sharding_constraint(leaf, whole)

    return jax.tree_util.tree_map_with_path(one, params, shardings)


def _without(entry: Any, axis: str) -> Any:
    if isinstance(entry, tuple):
        rest = tuple(name for name in entry if name != axis)
        return rest if rest != entry else entry
    return None if entry == axis else entry
