"""The mesh and the way of a batch onto it."""

import types

import jax
import numpy as np
import pytest

from jaxclip import parallel
from jaxclip.parallel import mesh as mesh_lib


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        (None, (8, 1, 1)),
        ({}, None),
        ({"data": -1}, (8, 1, 1)),
        ({"fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
        ({"data": -1, "fsdp": 8}, (1, 8, 1)),
    ],
)
def test_sizes(shape, sizes):
    if sizes is None:
        with pytest.raises(ValueError, match="wants 1 devices, there are 8; set one axis to -1"):
            parallel.make_mesh(shape)
        return
    mesh = parallel.make_mesh(shape)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == parallel.AXES
    assert parallel.batch_shards(mesh) == sizes[0] * sizes[1]
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model": 2}, "mesh has no axis 'model'; its axes are data, fsdp, tensor"),
        ({"data": -1, "tensor": 3}, r"\{data: -1, fsdp: 1, tensor: 3\} does not divide 8 devices"),
        ({"data": -1, "fsdp": -1}, r"mesh\.data and mesh\.fsdp are both -1"),
        ({"data": 0}, r"mesh\.data=0 must be at least 1, or -1"),
        ({"data": 2, "fsdp": 2}, r"wants 4 devices, there are 8"),
    ],
)
def test_shapes_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        parallel.make_mesh(shape)


def test_one_device():
    mesh = parallel.make_mesh({"data": -1}, devices=jax.devices()[:1])
    assert mesh.size == 1 and tuple(mesh.shape.values()) == (1, 1, 1)


def test_to_global_keeps_order_and_dtype_and_cuts_along_the_batch():
    mesh = parallel.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    batch = {"image": np.arange(8 * 3, dtype=np.uint8).reshape(8, 3), "text": np.arange(8)}
    arrays = parallel.to_global(batch, mesh)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.sharding.is_equivalent_to(parallel.batch_sharding(mesh), array.ndim)
        assert {s.data.shape[0] for s in array.addressable_shards} == {2}
    assert arrays["image"].dtype == np.uint8


@pytest.mark.parametrize("array", [np.zeros((6, 2)), np.float32(0)])
def test_to_global_refuses_rows_that_do_not_divide(array):
    mesh = parallel.make_mesh({"data": 4, "tensor": 2})
    with pytest.raises(ValueError, match="does not divide over the 4 batch shard"):
        parallel.to_global({"x": array}, mesh)


def fake_mesh(shape, per_process):
    """A mesh of devices that belong to processes of ``per_process`` devices each."""
    count = int(np.prod(shape))
    devices = [types.SimpleNamespace(process_index=i // per_process) for i in range(count)]
    array = np.array(devices, dtype=object).reshape(shape)
    sizes = dict(zip(parallel.AXES, shape, strict=True))
    return types.SimpleNamespace(devices=array, shape=sizes, size=count)


@pytest.mark.parametrize(
    ("shape", "per_process", "shares"),
    [
        ((4, 2, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a tensor axis over two processes
        ((1, 1, 4), 1, [(0, 1)] * 4),
        ((2, 2, 2), 4, [(0, 2), (1, 2)]),
    ],
)
def test_process_share(shape, per_process, shares):
    mesh = fake_mesh(shape, per_process)
    assert [parallel.process_share(mesh, i) for i in range(len(shares))] == shares


def test_process_share_refuses_parts_that_overlap():
    # Six devices a row of batch 0, two processes of 4: the second holds parts of both rows.
    with pytest.raises(ValueError, match=r"let mesh\.tensor divide, or be a multiple of, the 4"):
        parallel.process_share(fake_mesh((2, 1, 6), 4), 0)


def test_all_shares_make_the_whole_batch():
    mesh = fake_mesh((2, 4, 1), 2)
    seen = [mesh_lib._batch_positions(mesh, process) for process in range(4)]
    assert frozenset.union(*seen) == frozenset(range(8)) and sum(map(len, seen)) == 8
