"""The device mesh, and the way of a host's batch onto it.

The mesh always has the axes ``data``, ``fsdp`` and ``tensor``, also on one device, so that nothing
downstream asks which of them exist. Batches are sharded over ``data`` x ``fsdp``; parameters over
``fsdp`` and ``tensor`` by the rules of :mod:`jaxclip.parallel.sharding`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    shape: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Build the mesh with axes ``data``, ``fsdp``, ``tensor``.

    Args:
      shape: sizes by axis name; a missing axis has size 1 and one axis may be -1, the rest of the
        devices. None is ``{"data": -1}``.
      devices: devices of the mesh (those of an ahead-of-time topology will do); None takes all.

    Returns:
      A :class:`jax.sharding.Mesh`. Neighbours in the mesh are neighbours in the interconnect where
      the platform says how it is wired; several slices are joined along ``data``.

    Raises:
      ValueError: an unknown axis, a size that is not positive, or sizes that do not multiply to
        the number of devices.
    """
    device_list = list(jax.devices() if devices is None else devices)
    sizes = resolve_shape({"data": -1} if shape is None else shape, len(device_list))
    array = _arrange(tuple(sizes[axis] for axis in AXES), device_list)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve_shape(shape: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Sizes of all axes, with the -1 filled in.

    Args:
      shape: sizes by axis name, at most one of them -1.
      num_devices: how many devices there are.

    Returns:
      ``{"data": …, "fsdp": …, "tensor": …}``.

    Raises:
      ValueError: as :func:`make_mesh`.
    """
    unknown = sorted(set(shape) - set(AXES))
    if unknown:
        raise ValueError(f"mesh has no axis {unknown[0]!r}; its axes are {', '.join(AXES)}")
    sizes = {axis: int(shape.get(axis, 1)) for axis in AXES}
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis}={size} must be at least 1, or -1 for all the rest")
    rest = [axis for axis in AXES if sizes[axis] == -1]
    if len(rest) > 1:
        raise ValueError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1; set one of them")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if rest:
        if num_devices % fixed:
            raise ValueError(
                f"mesh {_describe(sizes)} does not divide {num_devices} devices: {fixed} is no "
                f"divisor of {num_devices}"
            )
        sizes[rest[0]] = num_devices // fixed
    elif fixed != num_devices:
        raise ValueError(
            f"mesh {_describe(sizes)} wants {fixed} devices, there are {num_devices}; "
            "set one axis to -1 for all the rest"
        )
    return sizes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array's leading (batch) axis over ``data`` x ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Into how many pieces a batch is cut: the product of the sizes of the batch axes."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def to_global(batch: Any, mesh: Mesh) -> Any:
    """Put this process's rows of a batch on its devices, as parts of global arrays.

    Args:
      batch: tree of numpy arrays ``[b, ...]``, this process's share of the global batch (see
        :func:`process_share`).
      mesh: the mesh.

    Returns:
      The same tree of global ``jax.Array`` ``[B, ...]`` sharded by :func:`batch_sharding`. Rows
      lie in the order of the mesh, which on wired topologies need not be that of the processes;
      all arrays of a batch lie in the same one.

    Raises:
      ValueError: rows that do not divide over this process's devices.
    """
    sharding = batch_sharding(mesh)
    pieces = len(_batch_positions(mesh, jax.process_index()))

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        if array.ndim == 0 or array.shape[0] % pieces:
            raise ValueError(
                f"a batch array of shape {array.shape} does not divide over the {pieces} batch "
                f"shard(s) of process {jax.process_index()}; let the batch size be a multiple of "
                f"{batch_shards(mesh)} (mesh.data x mesh.fsdp)"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)


def process_share(mesh: Mesh, process_index: int | None = None) -> tuple[int, int]:
    """Which share of the global batch a process reads.

    Processes whose devices hold the same batch rows (a ``tensor`` axis that spans hosts) must read
    the same share.

    Args:
      mesh: the mesh.
      process_index: the process; None is this one.

    Returns:
      ``(index, count)``: the process reads share ``index`` of ``count`` equal ones.

    Raises:
      ValueError: the mesh cuts the batch such that two processes' rows overlap in part.
    """
    processes = sorted({device.process_index for device in mesh.devices.flat})
    rows = {process: _batch_positions(mesh, process) for process in processes}
    shares = sorted(set(rows.values()), key=min)
    if sum(map(len, shares)) != batch_shards(mesh) or len(set(map(len, shares))) != 1:
        raise ValueError(
            f"mesh {_describe(dict(mesh.shape))} on {len(processes)} processes gives some of them "
            "overlapping parts of the batch; let mesh.tensor divide, or be a multiple of, the "
            f"{mesh.size // len(processes)} devices of a process"
        )
    own = jax.process_index() if process_index is None else process_index
    return shares.index(rows[own]), len(shares)


def _batch_positions(mesh: Mesh, process_index: int) -> frozenset[int]:
    """Positions along the flattened batch axes at which the process has a device."""
    flat = mesh.devices.reshape(batch_shards(mesh), -1)
    return frozenset(
        position
        for position, row in enumerate(flat)
        if any(device.process_index == process_index for device in row)
    )


def _arrange(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and shape[0] % slices == 0:
        # The slow network between slices carries data parallelism's one reduction a step.
        return mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, *(1 for _ in shape[1:])),
            devices,
            allow_split_physical_axes=True,
        )
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _describe(sizes: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{axis}: {size}" for axis, size in sizes.items()) + "}"
