"""Optimizer states in the memory of the host, where the accelerator's is short.

The states lie in pinned host memory between steps, come to the device for the update, once the
gradients are there, and go back at its end. So they are not beside the activations, but still
beside the gradients; the price is their size, twice a step, over the link to the host.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxclip.parallel.sharding import MIN_FILL_SIZE

HOST = "pinned_host"
DEVICE = "device"


def on_host(tree: Any, shardings: Any, mesh: Mesh) -> Any:
    """The same shardings, with the large arrays in host memory.

    Args:
      tree: tree of arrays or ``jax.ShapeDtypeStruct``.
      shardings: its shardings.
      mesh: their mesh.

    Returns:
      Tree of shardings. Counts, thresholds and other small arrays stay on the device: a transfer
      of their own costs more than they take.

    Raises:
      ValueError: the devices have no pinned host memory.
    """
    kinds = _memory_kinds(mesh)
    if kinds is not None and not {HOST, DEVICE} <= kinds:
        raise ValueError(
            f"offload_optimizer_state=True needs the memories {DEVICE!r} and {HOST!r}, but "
            f"{mesh.devices.flat[0].platform} devices have {', '.join(sorted(kinds))}; set it to "
            "False, or save memory with sharding='fsdp' or optim.mu_dtype='bfloat16'"
        )

    def place(leaf: Any, sharding: NamedSharding) -> NamedSharding:
        large = math.prod(leaf.shape) >= MIN_FILL_SIZE
        return sharding.with_memory_kind(HOST) if large else sharding

    return jax.tree.map(place, tree, shardings)


def is_on_host(shardings: Any) -> bool:
    """Whether any array of a tree of shardings lies in host memory."""
    return any(sharding.memory_kind == HOST for sharding in jax.tree.leaves(shardings))


def to_device(tree: Any, shardings: Any) -> Any:
    """Bring what :func:`on_host` keeps in host memory to the device; for use under ``jit``."""

    def fetch(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        if sharding.memory_kind != HOST:
            return leaf
        return jax.device_put(leaf, sharding.with_memory_kind(DEVICE))

    return jax.tree.map(fetch, tree, shardings)


def _memory_kinds(mesh: Mesh) -> set[str] | None:
    """Kinds of memory that the devices have; None where they are a mere description."""
    try:
        memories = mesh.devices.flat[0].addressable_memories()
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return {memory.kind for memory in memories}
