"""Reading the text of compiled programs."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from hypothesis import strategies as st

from jaxclip.plan import hlo, loops

SIZES = {"f32": 4, "bf16": 2, "s32": 4, "pred": 1, "u8": 1, "f8e4m3fn": 1}


@st.composite
def shapes(draw, depth=2):
    """(text, number of arrays, bytes) of a shape without tiles."""
    if depth and draw(st.integers(0, 3)) == 0:
        items = draw(st.lists(shapes(depth=depth - 1), max_size=6))
        text = "(" + ", ".join(
            ("/*index=5*/" if n == 5 else "") + t[0] for n, t in enumerate(items)
        )
        return text + ")", sum(t[1] for t in items), sum(t[2] for t in items)
    dtype = draw(st.sampled_from(sorted(SIZES)))
    dims = draw(st.lists(st.integers(0, 300), max_size=4))
    layout = ""
    if dims and draw(st.booleans()):
        order = draw(st.permutations(range(len(dims))))
        space = draw(st.sampled_from(["", ":S(1)", ":S(5)"]))
        layout = "{" + ",".join(map(str, order)) + space + "}"
    return f"{dtype}[{','.join(map(str, dims))}]{layout}", 1, math.prod(dims) * SIZES[dtype]


@hypothesis.given(shapes(), st.text(alphabet=" abc([{%", max_size=5))
@hypothesis.settings(max_examples=200, deadline=None)
def test_shapes_are_read_whole_and_leave_the_rest(shape, rest):
    text, count, size = shape
    parsed, end = hlo.parse_shape(text + " " + rest)
    assert end == len(text)
    found = list(hlo.arrays(parsed))
    assert len(found) == count
    assert sum(array.bytes for array in found) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        # Rows of 197 are padded to 200, lanes of 64 to 128.
        ("bf16[4,197,64]{2,1,0:T(8,128)(2,1)}", 4 * 200 * 128 * 2),
        # With the batch in the lanes nothing is padded but the 12.
        ("bf16[128,16,12]{0,2,1:T(8,128)(2,1)}", 16 * 16 * 128 * 2),
        ("f32[5]{0:T(128)S(1)}", 128 * 4),
        ("s32[]{:T(128)}", 128 * 4),
        ("pred[3,5]{1,0}", 15),
        ("f32[<=8,2]{1,0}", 64),
        ("token[]", 0),
        ("f4e2m1fn[4]", 2),
    ],
)
def test_bytes_include_the_padding_of_tiles(text, size):
    assert hlo.parse_shape(text)[0].bytes == size


def test_memory_space_and_tuples():
    shape, _ = hlo.parse_shape("((f32[2]{0:S(1)}, s32[]), /*index=1*/bf16[3]{0}) rest")
    assert [a.space for a in hlo.arrays(shape)] == [1, 0, 0]
    assert isinstance(shape, tuple) and isinstance(shape[0], tuple)


@pytest.mark.parametrize("text", ["float[3]", "q7[2]", "[2]", "", "(f32[2], nothing)"])
def test_what_is_no_shape_is_an_error(text):
    with pytest.raises((ValueError, IndexError)):
        hlo.parse_shape(text)


def test_instructions():
    line = (
        "  ROOT %all-reduce.1 = (f32[8]{0}, bf16[2,4]{1,0}) all-reduce(%a.1, %b), channel_id=3, "
        "replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}, to_apply=%sum, "
        'metadata={op_name="jit(f)/a,b/dot" source_line=3}, backend_config={"a":[{"b":"c,d"}]}'
    )
    is_root, instruction = hlo.parse_instruction(line)
    assert is_root
    assert instruction.opcode == "all-reduce"
    assert instruction.operands == ("a.1", "b")
    assert instruction.attribute("channel_id") == "3"
    assert instruction.attribute("id") is None
    groups = "mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}"
    assert instruction.attribute("replica_groups") == groups
    assert instruction.called("to_apply") == ("sum",)
    assert instruction.op_name == "jit(f)/a,b/dot"
    with pytest.raises(ValueError, match="not an HLO instruction"):
        hlo.parse_instruction("  something else")
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("nothing\n")


def compiled(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(function).lower(*args).compile().as_text())


def whiles(module):
    return [
        (computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    ]


def test_a_compiled_program_is_read_whole():
    module = compiled(lambda x: jnp.sum(jnp.tanh(x @ x)), (16, 16))
    assert module.entry.parameters[0].shape.dims == (16, 16)
    for computation in module.computations.values():
        assert computation.root.name in computation.instructions
        for instruction in computation.instructions.values():
            assert all(operand in computation.instructions for operand in instruction.operands)


@pytest.mark.parametrize("strip", [False, True])
def test_trip_counts_noted_or_read_off_the_program(strip):
    def body(x, w):
        return jnp.tanh(x @ w), None

    module = compiled(lambda x, ws: jax.lax.scan(body, x, ws)[0], (8, 8), (7, 8, 8))
    ((computation, loop),) = whiles(module)
    if strip:  # as a TPU's compiler leaves it
        attributes = loop.attributes.replace("known_trip_count", "nothing")
        loop = hlo.Instruction(
            loop.name, loop.shape, loop.opcode, loop.operands, loop.argument, attributes
        )
        assert loop.trip_count is None
    assert loops.trip_count(module, computation, loop) == 7


LOOP = """HloModule m

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %s = (s32[], f32[4]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4]{{0}} get-tuple-element(%s), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  ROOT %t = (s32[], f32[4]{{0}}) tuple(%next, %x)
}}

%condition (s.1: (s32[], f32[4])) -> pred[] {{
  %s.1 = (s32[], f32[4]{{0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] constant({limit})
  ROOT %less = pred[] compare(%i.1, %limit), direction={direction}
}}

ENTRY %main (p: f32[4], n: s32[]) -> (s32[], f32[4]) {{
  %p = f32[4]{{0}} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant({start})
  %moved = s32[] copy({first})
  %init = (s32[], f32[4]{{0}}) tuple(%moved, %p)
  ROOT %loop = (s32[], f32[4]{{0}}) while(%init), condition=%condition, body=%body
}}
"""


@pytest.mark.parametrize(
    ("start", "limit", "step", "direction", "first", "runs"),
    [
        (0, 5, 1, "LT", "%zero", 5),
        (0, 5, 1, "LE", "%zero", 6),
        (1, 8, 2, "LT", "%zero", 4),
        (9, 5, 1, "LT", "%zero", 0),
        (0, 5, 1, "GT", "%zero", None),
        (0, 5, 1, "LT", "%n", None),  # it starts with an argument: nobody knows
    ],
)
def test_trip_counts_of_written_loops(start, limit, step, direction, first, runs):
    module = hlo.parse(
        LOOP.format(start=start, limit=limit, step=step, direction=direction, first=first)
    )
    ((computation, loop),) = whiles(module)
    assert loops.trip_count(module, computation, loop) == runs
