"""The blockwise losses on meshes: numbers, memory, and what goes over the wire."""

import itertools
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip import losses, parallel
from jaxclip.losses import ring, ring_order
from tests.losses.test_losses import check, embeddings, value_and_grad

NAMES = ("softmax_blockwise", "sigmoid_blockwise")
MESHES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(shape) == 8]
FEW = [(8, 1, 1), (2, 1, 4)]


def mesh_of(shape):
    devices = jax.devices()[: math.prod(shape)]
    return parallel.make_mesh(dict(zip(parallel.AXES, shape, strict=True)), devices=devices)


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=[] if s in FEW else pytest.mark.slow) for s in MESHES],
    ids=str,
)
def test_value_and_gradient_on_a_mesh(case, shape):
    """40 rows: 5 a device, in tiles of 4, so that every device has padding."""
    mesh = mesh_of(shape)
    images, texts = embeddings(40)
    with jax.enable_x64(True):
        sharded = parallel.to_global((images, texts), mesh)
        scale, bias = np.float64(math.log(30)), np.float64(-4)
        result = value_and_grad(case, mesh)(*sharded, scale, bias)
        check(result, case, images, texts, scale, bias, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", NAMES)
def test_the_ring_may_go_any_way_round(case, monkeypatch):
    way = (0, 3, 1, 2)
    monkeypatch.setattr(ring_order, "ring_order", lambda devices: way)
    images, texts = embeddings(14)
    mesh = mesh_of((2, 1, 2))
    assert ring.plan(14, 2, mesh).order == way
    with jax.enable_x64(True):
        scale, bias = np.float64(math.log(30)), np.float64(-4)
        run = value_and_grad(case, mesh)
        check(
            run(images, texts, scale, bias),
            case,
            images,
            texts,
            scale,
            bias,
            rtol=1e-11,
            atol=1e-13,
        )
        pairs = re.search(
            r"source_target_pairs\s*=\s*dense<(\[.*?\])>",
            run.lower(images, texts, scale, bias).as_text(),
        )
    assert pairs and pairs[1].replace(" ", "") == "[[0,3],[3,1],[1,2],[2,0]]"


@pytest.mark.parametrize("case", NAMES)
def test_rows_that_do_not_divide_over_the_devices(case):
    mesh = mesh_of((1, 1, 2))
    images, texts = (x.astype(np.float32) for x in embeddings(7))
    result = value_and_grad(case, mesh)(images, texts, np.float32(3), np.float32(-4))
    check(result, case, images, texts, 3.0, -4.0, rtol=1e-5, atol=1e-5)


def compiled(name, devices, rows_each, width=32, tile_size=64):
    """The gradient of a loss, compiled for a batch of ``devices * rows_each``."""
    mesh = mesh_of((devices, 1, 1))
    loss = losses.from_config({"name": name, "tile_size": tile_size})
    rows = jax.ShapeDtypeStruct(
        (devices * rows_each, width), jnp.float32, sharding=parallel.batch_sharding(mesh)
    )
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def run(images, texts, scale, bias):
        return loss(images, texts, logit_scale=scale, logit_bias=bias, mesh=mesh)[0]

    # The scalars count, too: their gradients may not be dropped.
    gradient = jax.value_and_grad(run, argnums=(0, 1, 2, 3))
    return jax.jit(gradient).lower(rows, rows, scalar, scalar).compile()


@pytest.mark.parametrize("name", NAMES)
def test_no_large_array_and_no_gather(name):
    """No array of b x B logits, none of all embeddings, and only neighbours talk."""
    devices, rows, width, tile = 4, 512, 8, 64
    program = compiled(name, devices, rows, width, tile).as_text()
    shapes = re.findall(r"\bf32\[([\d,]*)\]", program)
    largest = max(math.prod(int(n) for n in s.split(",") if n) for s in shapes)
    assert largest <= max(rows * width, tile * tile)
    assert "collective-permute" in program
    for collective in ("all-gather", "all-to-all"):
        assert collective not in program
    # What is reduced over all devices is no larger than the sums over a row of embeddings.
    for line in program.splitlines():
        if re.search(r"= .* all-reduce\(", line):
            sizes = re.findall(r"\bf32\[([\d,]*)\]", line.split(" all-reduce(")[0])
            assert all(math.prod(int(n) for n in s.split(",") if n) <= width for s in sizes)


def temporaries(name, devices, rows_each=256):
    return compiled(name, devices, rows_each).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_global_batch(name):
    """At a fixed batch a device; the test below goes on to 16 devices."""
    assert temporaries(name, 8) == pytest.approx(temporaries(name, 2), rel=0.05)


@pytest.mark.slow
def test_memory_is_flat_when_the_global_batch_grows_eightfold():
    script = (
        "from tests.losses.test_blockwise import NAMES, temporaries\n"
        "for name in NAMES: print(*(temporaries(name, n) for n in (2, 4, 8, 16)))\n"
    )
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=16",
        "PYTHONPATH": ".",
    }
    out = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    for line in out.splitlines():
        bytes_by_devices = [int(word) for word in line.split()]
        assert len(bytes_by_devices) == 4
        assert max(bytes_by_devices) <= 1.05 * min(bytes_by_devices)


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_recomputed_not_kept(name):
    """The forward pass hands embeddings and sums over rows to the backward one, no logits."""
    rows, width = 256, 8
    x = jax.ShapeDtypeStruct((rows, width), jnp.float32)
    loss = losses.from_config({"name": name, "tile_size": 32})

    def run(images, texts, scale):
        return loss(images, texts, logit_scale=scale, logit_bias=0.0)[0]

    pull = jax.eval_shape(lambda *a: jax.vjp(run, *a)[1], x, x, 0.0)
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) <= rows * width


def test_layout():
    layout = ring.plan(100, 16, None)
    assert (layout.shards, layout.local, layout.tiles, layout.tile) == (1, 100, 7, 15)
    assert layout.padded
    layout = ring.plan(64, 16, mesh_of((2, 1, 2)))
    assert (layout.axes, layout.shards, layout.local) == (("data", "fsdp", "tensor"), 4, 16)
    assert (layout.tiles, layout.tile, layout.padded) == (1, 16, False)
    with pytest.raises(ValueError, match="tile_size=0"):
        ring.plan(100, 0, None)
