"""FLOPs, bytes and collectives of compiled programs against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.plan import cost, hlo, interconnect

AXES = ("data", "fsdp", "tensor")


@functools.cache
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), AXES)


def analyse(function, *args, out=None):
    """Cost of a function of (shape, spec) pairs on eight devices, or of shapes on one."""
    if args[0] and isinstance(args[0][-1], P):
        structs = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), spec))
            for shape, spec in args
        ]
        options = {} if out is None else {"out_shardings": NamedSharding(mesh(), out)}
        jitted, count = jax.jit(function, **options), 8
    else:
        structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in args]
        jitted, count = jax.jit(function), 1
    return cost.analyse(hlo.parse(jitted.lower(*structs).compile().as_text()), count)


def test_flops_of_a_product():
    assert analyse(jnp.matmul, (64, 32), (32, 48)).flops == 2 * 64 * 32 * 48


def test_flops_of_a_batched_product():
    def scores(q, k):
        return jnp.einsum("bqhd,bkhd->bhqk", q, k)

    got = analyse(scores, (2, 8, 3, 4), (2, 8, 3, 4))
    assert got.flops == 2 * 2 * 3 * 8 * 8 * 4


def test_loops_count_as_often_as_they_run():
    def step(x, w):
        return jnp.tanh(x @ w), None

    def loss(ws, x):
        return jnp.sum(jax.lax.scan(step, x, ws)[0])

    once = 2 * 16 * 8 * 8
    assert analyse(loss, (5, 8, 8), (16, 8)).flops == 5 * once
    # Backward: one product for the inputs and one for the weights, each as large.
    assert analyse(jax.grad(loss), (5, 8, 8), (16, 8)).flops == 3 * 5 * once
    nested = analyse(
        lambda ws, x: jax.lax.scan(lambda y, _: (jax.lax.scan(step, y, ws)[0], None), x, None, 3)[
            0
        ],
        (5, 8, 8),
        (16, 8),
    )
    assert nested.flops == 3 * 5 * once
    assert nested.unknown_loops == ()


@pytest.mark.parametrize(("stride", "padding", "taps"), [(1, "VALID", 36), (2, "VALID", 9)])
def test_flops_of_a_convolution(stride, padding, taps):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    got = analyse(convolve, (2, 8, 8, 3), (3, 3, 3, 5))
    assert got.flops == 2 * 2 * taps * 9 * 3 * 5


CONVOLUTION = """HloModule m

ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> f32[{result}] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{right}] parameter(1)
  ROOT %c = f32[{result}] convolution(%a, %b), window={window}, dim_labels={labels}
}}
"""


@pytest.mark.parametrize(
    ("left", "right", "result", "window", "labels", "flops"),
    [
        # What TPUs make of products: batched over 6 x 3, and with the batch turned round.
        (
            "6,5,3,7",
            "6,4,3,7",
            "6,3,5,4",
            "{size=6x3 stride=5x2 lhs_dilate=6x3}",
            "0b1f_0o1i->01bf",
            2 * 6 * 3 * 5 * 4 * 7,
        ),
        (
            "7,4,1",
            "9,5,7",
            "9,5,4",
            "{size=5 pad=4_4 rhs_reversal=1}",
            "fb0_o0i->f0b",
            2 * 9 * 5 * 4 * 7,
        ),
        ("8,5,7", "7,9,1", "8,5,9", "{size=1}", "b0f_io0->b0f", 2 * 8 * 5 * 7 * 9),
        ("4,5,8", "8,5,9", "4,9,1", "{size=5}", "b0f_i0o->bf0", 2 * 4 * 9 * 8 * 5),
        # Padding is not multiplied: 3 + 4 x 2 + ... of a 3-tap window over 5.
        ("1,5,1", "3,1,1", "1,5,1", "{size=3 pad=1_1}", "b0f_0io->b0f", 2 * (3 * 3 + 2 * 2)),
    ],
)
def test_flops_of_written_convolutions(left, right, result, window, labels, flops):
    text = CONVOLUTION.format(left=left, right=right, result=result, window=window, labels=labels)
    assert cost.analyse(hlo.parse(text), 1).flops == flops


def test_sharded_products_count_a_device_share():
    got = analyse(jnp.matmul, ((64, 32), P(("data", "fsdp"))), ((32, 48), P(None, "tensor")))
    assert got.flops == 2 * 64 * 32 * 48 // 8
    assert got.collectives == ()


@pytest.mark.parametrize("axis", AXES)
def test_contraction_over_each_axis_is_an_all_reduce_over_it(axis):
    got = analyse(jnp.matmul, ((16, 32), P(None, axis)), ((32, 24), P(axis)), out=P())
    (reduce,) = got.collectives
    assert (reduce.kind, reduce.group_size, reduce.runs) == ("all-reduce", 2, 1)
    assert interconnect.mesh_axes(reduce.groups, mesh()) == (axis,)
    assert reduce.bytes == 16 * 24 * 4
    assert reduce.sent == 2 * reduce.bytes * (1 / 2)


@pytest.mark.parametrize(
    ("axes", "size"), [(("data",), 2), (("fsdp", "tensor"), 4), (("data", "tensor"), 4), (AXES, 8)]
)
def test_gathering_over_axes(axes, size):
    got = analyse(lambda x: x * 2, ((64, 8), P(axes)), out=P())
    kinds = {c.kind for c in got.collectives}
    assert kinds == {"all-gather"}
    assert sum(c.sent * c.runs for c in got.collectives) == 64 * 8 * 4 * (size - 1) / size
    assert interconnect.mesh_axes(got.collectives[0].groups, mesh()) == axes


def sharded(function, in_spec, out_spec):
    return jax.shard_map(
        function, mesh=mesh(), in_specs=in_spec, out_specs=out_spec, check_vma=False
    )


def test_collectives_in_a_loop_are_multiplied():
    def ring(x):
        turn = [(i, (i + 1) % 8) for i in range(8)]
        return jax.lax.fori_loop(0, 8, lambda _, y: jax.lax.ppermute(y, AXES, turn) + 1, x)

    got = analyse(sharded(ring, P(AXES), P(AXES)), ((32, 4), P(AXES)))
    (permute,) = got.collectives
    assert (permute.kind, permute.runs, permute.bytes) == ("collective-permute", 8, 4 * 4 * 4)
    assert interconnect.mesh_axes(permute.groups, mesh()) == AXES
    assert got.sent == 8 * 64


def test_scatter_and_all_to_all():
    def scatter(x):
        return jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True)

    got = analyse(sharded(scatter, P(), P("data")), ((16, 4), P()))
    moved = sum(c.sent * c.runs for c in got.collectives)
    # As a reduce-scatter, or, where a backend has none, as the all-reduce it makes of it.
    assert {c.kind for c in got.collectives} <= {"reduce-scatter", "all-reduce"}
    assert moved in (16 * 4 * 4 / 2, 16 * 4 * 4)

    def swap(x):
        return jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)

    got = analyse(sharded(swap, P("fsdp"), P("fsdp")), ((16, 4), P("fsdp")))
    (exchange,) = got.collectives
    assert (exchange.kind, exchange.group_size) == ("all-to-all", 2)
    assert exchange.bytes == 8 * 4 * 4


def test_bytes_of_an_elementwise_kernel_are_its_inputs_and_outputs():
    got = analyse(lambda x, y: jnp.tanh(x) * y + 1, (512, 64), (512, 64))
    assert got.bytes == 3 * 512 * 64 * 4


def test_a_loop_reads_slices_of_what_it_scans():
    def scan(xs):
        return jax.lax.scan(lambda total, x: (total + x, jnp.tanh(x)), jnp.zeros((1024,)), xs)

    rows, width = 50, 1024
    got = analyse(scan, (rows, width))
    one = width * 4
    # A row read, a row written, the sum read and written; the stack is not copied each time.
    assert 3 * rows * one <= got.bytes <= 8 * rows * one


def test_of_branches_the_heavier_one_counts():
    def branch(flag, x):
        return jax.lax.cond(flag > 0, lambda: x @ x @ x, lambda: x)

    got = analyse(branch, (), (32, 32))
    assert got.flops == 2 * 2 * 32**3


FUSED = """HloModule m

%piece.0 (p: f32[4]) -> f32[8] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

%piece.1 (q: f32[4]) -> f32[8] {
  %q = f32[4]{0} parameter(0)
  ROOT %h = f32[8]{0} all-gather(%q), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %one = f32[8]{0} fusion(%a), kind=kCustom, calls=%piece.0
  %two = f32[8]{0} fusion(%a), kind=kCustom, calls=%piece.1
  %turn = f32[4]{0} collective-permute(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %back = f32[4]{0} collective-permute(%turn), channel_id=1, source_target_pairs={{0,1},{1,0}}
}
"""


def test_pieces_of_one_collective_count_once_and_a_shared_channel_twice():
    got = cost.analyse(hlo.parse(FUSED), 2)
    assert [c.kind for c in got.collectives] == ["all-gather"] + 2 * ["collective-permute"]
    assert [c.asynchronous for c in got.collectives] == [True, False, False]


SCATTER = """HloModule m

%sum (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %add = bf16[] add(%x, %y)
}

%all-reduce-scatter (p: bf16[30,4]) -> bf16[16,4] {
  %p = bf16[30,4]{1,0} parameter(0)
  %zero = bf16[] constant(0)
  %pad = bf16[32,4]{1,0} pad(%p, %zero), padding=0_2x0_0
  %all = bf16[32,4]{1,0} all-reduce(%pad), channel_id=5, replica_groups={{0,1}}, to_apply=%sum
  %i = u32[] partition-id()
  %j = u32[] constant(0)
  ROOT %share = bf16[16,4]{1,0} dynamic-slice(%all, %i, %j), dynamic_slice_sizes={16,4}
}

ENTRY %main (a: bf16[30,4]) -> bf16[16,4] {
  %a = bf16[30,4]{1,0} parameter(0)
  %whole = bf16[30,4]{1,0} all-reduce(%a), channel_id=6, replica_groups={{0,1}}, to_apply=%sum
  ROOT %f = bf16[16,4]{1,0} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_a_sum_fused_with_a_slice_of_it_is_a_reduce_scatter():
    got = cost.analyse(hlo.parse(SCATTER), 2)
    assert [(c.kind, c.asynchronous) for c in got.collectives] == [
        ("all-reduce", False),
        ("reduce-scatter", False),
    ]
    whole, share = (c.sent for c in got.collectives)
    assert (whole, share) == (2 * 30 * 4 * 2 / 2, 32 * 4 * 2 / 2)


KERNEL = """HloModule m

ENTRY %main (a: f32[4,8]) -> f32[4,8] {{
  %a = f32[4,8]{{1,0}} parameter(0)
  ROOT %k = f32[4,8]{{1,0}} custom-call(%a), custom_call_target="tpu_custom_call"{config}
}}
"""


def test_custom_kernels_have_the_flops_they_declare():
    config = ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"123","x":"4"}}}'
    declared = cost.analyse(hlo.parse(KERNEL.format(config=config)), 1)
    assert (declared.flops, declared.bytes, declared.opaque) == (123, 2 * 4 * 8 * 4, ())
    silent = cost.analyse(hlo.parse(KERNEL.format(config="")), 1)
    assert (silent.flops, silent.opaque) == (0, ("tpu_custom_call",))
