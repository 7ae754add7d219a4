"""Compiling, the compiler's refusals, the cache."""

import jax
import jax.numpy as jnp
import pytest

from jaxclip import config as config_lib
from jaxclip.plan import program
from jaxclip.plan.program import Cache, Memory, Program, Refusal

GIB = 2**30


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (75.03G) exceeds available HBM (15.75G).",
            75.03 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.20G of 15.75G hbm. "
            "Exceeded hbm capacity by 2.45G.",
            18.2 * GIB,
            15.75 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1024 bytes.", 1024, None),
        ("RESOURCE_EXHAUSTED: something new", None, None),
        ("Used 900.5M of 512K hbm", 900.5 * 2**20, 512 * 2**10),
    ],
)
def test_refusals_say_by_how_much(message, needed, limit):
    refusal = program.parse_refusal(message)
    assert refusal is not None
    assert refusal.needed == pytest.approx(needed)
    assert refusal.limit == pytest.approx(limit)
    assert refusal.message == message


@pytest.mark.parametrize(
    "message",
    [
        "INVALID_ARGUMENT: Custom emitter not found",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack",
        "",
    ],
)
def test_other_errors_are_no_refusals(message):
    assert program.parse_refusal(message) is None


class FakeStep:
    """A jitted function whose compiler says something."""

    def __init__(self, message):
        self.message = message

    def lower(self, *args):
        return self

    def compile(self):
        raise RuntimeError(self.message)


def test_a_refused_program_is_an_answer_and_another_error_an_error():
    refused = program.compile_step(FakeStep("… (20.00G) exceeds available HBM (15.75G)."))
    assert refused.memory is None and refused.text == ""
    assert refused.refusal.needed - refused.refusal.limit == pytest.approx(4.25 * GIB)
    with pytest.raises(RuntimeError, match="a bug"):
        program.compile_step(FakeStep("a bug"))


def test_memory_of_a_program():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=sharding)
    step = jax.jit(lambda x: (x @ x + 1, jnp.sum(x)), donate_argnums=0)
    memory = program.compile_step(step, x).memory
    assert memory.arguments == 256 * 256 * 4
    assert memory.aliased == 256 * 256 * 4
    assert memory.outputs >= 256 * 256 * 4 + 4
    assert memory.peak >= memory.arguments


def test_cache(tmp_path):
    cache = Cache(tmp_path / "programs")
    fits = Program("HloModule m", Memory(1, 2, 3, 4, 5, 6), None, 0.5, 1.5)
    refused = Program("", None, Refusal(7, None, "no"), 0.5, 1.5)
    for key, value in (("a", fits), ("b", refused)):
        assert cache.get(key) is None
        cache.put(key, value)
        assert cache.get(key) == value
    nothing = Cache(None)
    nothing.put("a", fits)
    assert nothing.get("a") is None


def test_cache_key_is_of_what_the_program_depends_on():
    cache = Cache(None)

    def key(*overrides, topology="v5e:4x4"):
        return cache.key(config_lib.resolve({}, overrides), topology)

    same = ("seed=3", "log_every_steps=7", "data.name=other", "checkpoint.keep_last=9")
    assert {key(text) for text in same} == {key()}
    others = ("remat=full", "mesh.fsdp=2", "sharding=fsdp", "optim.b1=0.5", "global_batch_size=512")
    assert len({key(), key(topology="v5e:8x8"), *(key(text) for text in others)}) == 7
