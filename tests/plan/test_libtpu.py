"""Against the TPU compiler itself, which needs no TPU: pip install 'jaxclip[tpu]'."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip import losses, parallel
from jaxclip.models import fused_attention
from jaxclip.plan import chips, cost, hlo, interconnect, program, roofline, topology

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow

SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


@functools.cache
def place():
    described = topology.get("v5e:4x4")
    return described, parallel.make_mesh({"data": 4, "fsdp": 4}, devices=described.devices)


def struct(shape, *spec, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(place()[1], P(*spec)))


@pytest.mark.parametrize("name", sorted(SMALLEST))
def test_limits_are_the_compilers_own(name):
    described = topology.get(SMALLEST[name])
    mesh = parallel.make_mesh(devices=described.devices)
    x = jax.ShapeDtypeStruct((100 * 2**30,), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
    refusal = program.compile_step(jax.jit(jnp.sum), x).refusal
    assert refusal is not None and refusal.limit == chips.get(name).hbm_bytes
    assert refusal.needed == pytest.approx(200 * 2**30, rel=0.01)
    assert described.devices[0].coords is not None
    assert len({tuple(d.coords) for d in described.devices}) == len(described.devices)


def test_a_scanned_step_is_counted_whole():
    layers, rows, width = 6, 4096, 1024

    def loss(ws, x):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(body, x, ws)[0].astype(jnp.float32) ** 2)

    args = struct((layers, width, width)), struct((rows, width), parallel.BATCH_AXES)
    compiled = program.compile_step(jax.jit(jax.grad(loss)), *args)
    assert compiled.refusal is None
    found = cost.analyse(hlo.parse(compiled.text), 16)
    assert found.unknown_loops == ()
    assert found.flops == 3 * layers * 2 * (rows // 16) * width * width
    # The gradients' sum over all chips, in the dtype of the weights.
    sums = [c for c in found.collectives if c.kind == "all-reduce"]
    assert sum(c.bytes * c.runs for c in sums) == layers * width * width * 2
    described, mesh = place()
    wiring = interconnect.Wiring.of(mesh, described.chip, described.shape)
    model = roofline.roofline(found, described.chip, roofline.torus_seconds(wiring))
    assert 0 < model.best <= model.worst
    assert model.compute == pytest.approx(found.flops / 197e12)


def test_batched_products_count_what_they_cost():
    def scores(q, k):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k)

    x = struct((64, 50, 4, 64), parallel.BATCH_AXES)
    compiled = program.compile_step(jax.jit(scores), x, x)
    assert cost.analyse(hlo.parse(compiled.text), 16).flops == 2 * 4 * 4 * 50 * 50 * 64


@pytest.mark.parametrize(("length", "width", "heads"), [(197, 768, 12), (77, 512, 8)])
def test_fused_attention_keeps_its_scores_out_of_memory(length, width, heads):
    batch = 64
    attention = fused_attention.sharded(place()[1], parallel.BATCH_AXES, "tensor")

    def loss(q, k, v):
        out = attention(q, k, v, num_heads=heads, causal=False)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    x = struct((batch, length, width), parallel.BATCH_AXES)
    compiled = program.compile_step(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), x, x, x)
    assert "tpu_custom_call" in compiled.text
    found = cost.analyse(hlo.parse(compiled.text), 16)
    local = batch // 16
    assert found.flops == (2 + 5) * 2 * local * length * length * width
    assert found.opaque == () and found.collectives == ()
    arrays = [
        a
        for c in hlo.parse(compiled.text).computations.values()
        for i in c.instructions.values()
        for a in hlo.arrays(i.shape)
    ]
    assert not any(a.dims[-2:] == (length, length) for a in arrays)


def test_unknown_slices():
    with pytest.raises(ValueError, match="does not know the topology 'v5e:3x5'"):
        topology.get("v5e:3x5")


@pytest.mark.parametrize("name", ["v5e:8x8", "v5p:4x4x4"])
def test_the_ring_of_the_blockwise_loss_runs_behind_its_tiles(name):
    described = topology.get(name)
    mesh = parallel.make_mesh({"data": -1}, devices=described.devices)
    loss = functools.partial(losses.get("softmax_blockwise"), mesh=mesh)

    def scalar(images, texts, scale):
        return loss(images, texts, logit_scale=scale)[0]

    rows = jax.ShapeDtypeStruct(
        (mesh.size * 512, 256), jnp.float32, sharding=parallel.batch_sharding(mesh)
    )
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    step = jax.jit(jax.grad(scalar, argnums=(0, 1, 2)))
    found = cost.analyse(hlo.parse(program.compile_step(step, rows, rows, scale).text), mesh.size)
    turns = [c for c in found.collectives if c.kind == "collective-permute"]
    assert turns and all(c.asynchronous for c in turns)
    # Texts go once round in each pass, and their gradients in the second.
    rows_sent = sum(c.runs * c.bytes for c in turns) / (512 * 256 * 4)
    assert 3 * mesh.size <= rows_sent <= 3 * mesh.size + 6
