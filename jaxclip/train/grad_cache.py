"""Value and gradient of a loss that couples the whole batch, whole or by micro-batches.

A contrastive loss couples all pairs of the batch, so the mean of the losses of small batches is
another loss. GradCache (Gao et al. 2021, arXiv:2101.06983) splits the step where it can be split:
outputs of all micro-batches first, keeping no activations; one loss on the whole batch, with its
gradient with respect to the outputs; then each micro-batch forward again and backward from that
gradient. The price is the second forward pass, at most a third of the plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclip.parallel.mesh import BATCH_AXES, batch_shards

Params = Any
Batch = Mapping[str, jax.Array]
Outputs = Any
Forward = Callable[[Params, Batch], Outputs]
Loss = Callable[[Params, Outputs, Batch], tuple[jax.Array, Any]]
ValueAndGrad = Callable[[Params, Batch], tuple[tuple[jax.Array, Any], Params]]


def value_and_grad(
    forward: Forward, loss: Loss, *, num_micro_batches: int = 1, mesh: Mesh | None = None
) -> ValueAndGrad:
    """Build ``(params, batch) -> ((loss, aux), gradients)``.

    Args:
      forward: ``(params, rows) -> outputs`` on any part of the batch: a pytree of arrays with the
        rows as leading axis, each row a function of its own row of the batch alone.
      loss: ``(params, outputs, batch) -> (loss, aux)`` on the global batch.
      num_micro_batches: into how many pieces the batch is cut; 1 is the plain step. Each device
        cuts its own rows, so that no row moves.
      mesh: the mesh the batch is sharded over; None for one device.

    Returns:
      The function; the gradient is exact for any number of micro-batches.

    Raises:
      ValueError: ``num_micro_batches`` is not positive or, when called, does not divide the batch
        of a device.
    """
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches={num_micro_batches} must be at least 1")

    def plain(params: Params, batch: Batch) -> Any:
        def whole(params: Params) -> Any:
            return loss(params, forward(params, batch), batch)

        return jax.value_and_grad(whole, has_aux=True)(params)

    def accumulated(params: Params, batch: Batch) -> Any:
        size = next(iter(batch.values())).shape[0]
        split, join = splitter(size, num_micro_batches, mesh)
        pieces = jax.tree.map(split, batch)
        _, parts = jax.lax.scan(lambda _, piece: (None, forward(params, piece)), None, pieces)
        outputs = jax.tree.map(join, parts)
        # Integers and booleans carry no gradient and may not be differentiated by.
        smooth, rest = _partition(outputs)

        def whole(smooth: Outputs, params: Params) -> Any:
            return loss(params, _combine(smooth, rest), batch)

        # The gradient of the loss has the parameters' tree, with zeros for the towers': it is what
        # the sums over micro-batches start from.
        (value, aux), (cotangents, start) = jax.value_and_grad(whole, argnums=(0, 1), has_aux=True)(
            smooth, params
        )

        def backward(total: Params, item: Any) -> tuple[Params, None]:
            piece, cotangent = item
            _, pull = jax.vjp(lambda params: _partition(forward(params, piece))[0], params)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        items = (pieces, jax.tree.map(split, cotangents))
        gradients, _ = jax.lax.scan(backward, start, items)
        return (value, aux), gradients

    return plain if num_micro_batches == 1 else accumulated


def _partition(tree: Any) -> tuple[list[jax.Array], Any]:
    """The floating leaves, and what is needed to put the tree together again."""
    leaves, treedef = jax.tree.flatten(tree)
    smooth = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    floats = [leaf for leaf, keep in zip(leaves, smooth, strict=True) if keep]
    others = [None if keep else leaf for leaf, keep in zip(leaves, smooth, strict=True)]
    return floats, (others, treedef)


def _combine(floats: list[jax.Array], rest: Any) -> Any:
    others, treedef = rest
    left = iter(floats)
    return jax.tree.unflatten(treedef, [next(left) if x is None else x for x in others])


def splitter(
    size: int, count: int, mesh: Mesh | None
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Functions ``[B, ...] -> [count, B / count, ...]`` and back that move no row to another
    device.

    Args:
      size: B.
      count: pieces.
      mesh: the mesh the batch is sharded over; None for one device.

    Raises:
      ValueError: the rows of a device do not divide.
    """
    shards = 1 if mesh is None else batch_shards(mesh)
    if size % (shards * count):
        raise ValueError(
            f"num_micro_batches={count} does not divide the {size / shards:g} examples a batch of "
            f"{size} leaves each of {shards} batch shard(s); use a batch that is a multiple of "
            f"{shards * count}"
        )

    def constrain(array: jax.Array, *axes: Any) -> jax.Array:
        if mesh is None:
            return array
        spec = PartitionSpec(*axes)
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

    def split(array: jax.Array) -> jax.Array:
        # Sizes are told, as none can be inferred of an output without elements.
        rows = array.shape[0] // (shards * count)
        pieces = array.reshape(shards, count, rows, *array.shape[1:])
        pieces = constrain(pieces, BATCH_AXES)
        pieces = constrain(jnp.swapaxes(pieces, 0, 1), None, BATCH_AXES)
        return constrain(pieces.reshape(count, shards * rows, *array.shape[1:]), None, BATCH_AXES)

    def join(pieces: jax.Array) -> jax.Array:
        rows = pieces.shape[1] // shards
        array = pieces.reshape(count, shards, rows, *pieces.shape[2:])
        array = constrain(array, None, BATCH_AXES)
        array = constrain(jnp.swapaxes(array, 0, 1), BATCH_AXES)
        return constrain(array.reshape(shards * count * rows, *pieces.shape[2:]), BATCH_AXES)

    return split, join
