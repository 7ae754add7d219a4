"""The time model against closed forms."""

import dataclasses

import numpy as np
import pytest

from jaxclip.plan import chips, roofline
from jaxclip.plan.cost import Collective, Cost, Kernel
from jaxclip.plan.interconnect import Wiring

CHIP = dataclasses.replace(chips.get("v5e"), matmul_flops=100.0, hbm_bandwidth=10.0)


def kernel(flops, size, runs=1, passes=None):
    return Kernel("k", "", runs, flops, flops if passes is None else passes, size)


def test_kernels_take_the_slower_of_their_resources():
    cost = Cost((kernel(200, 10), kernel(100, 50, runs=2), kernel(10, 0, passes=60)), (), (), ())
    model = roofline.roofline(cost, CHIP, roofline.flat_seconds(1.0))
    assert model.compute == pytest.approx((200 + 2 * 100 + 60) / 100)
    assert model.memory == pytest.approx((10 + 2 * 50) / 10)
    assert model.kernels == pytest.approx(2.0 + 2 * 5.0 + 0.6)
    assert model.best == model.memory
    assert model.worst == model.kernels


def test_collectives_are_hidden_at_best_and_bare_at_worst():
    gather = Collective("all-gather", "", 3, 80, ((0, 1, 2, 3),), "f32")
    cost = Cost((kernel(100, 5),), (gather,), (), ())
    model = roofline.roofline(cost, CHIP, roofline.flat_seconds(10.0))
    assert model.network == pytest.approx(3 * 80 * 3 / 4 / 10)
    assert model.best == pytest.approx(18.0)
    assert model.worst == pytest.approx(1.0 + 18.0)


def test_best_is_never_slower_than_worst():
    rng = np.random.default_rng(0)
    for _ in range(50):
        kernels = tuple(kernel(*map(int, rng.integers(0, 1000, 2)), 3) for _ in range(5))
        model = roofline.roofline(Cost(kernels, (), (), ()), CHIP, roofline.flat_seconds(1.0))
        assert model.best <= model.worst * (1 + 1e-12)
        assert model.kernels <= model.compute + model.memory + 1e-9


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        # A closed row of 16 v5e chips: 100 GB/s into each of them.
        ("all-gather", 1e9 * 15 / 16 / 100e9),
        ("reduce-scatter", 1e9 * 15 / 16 / 100e9),
        ("all-reduce", 2e9 * 15 / 16 / 100e9),
        # Half of 16 GB crosses two links each way: 8 GB / 2 / 2 / 50 GB/s.
        ("all-to-all", 1e9 * 16 / 2 / 2 / 2 / 50e9),
    ],
)
def test_collectives_on_a_closed_row(kind, seconds):
    places = np.stack(np.unravel_index(np.arange(256), (16, 16)), axis=1)
    wiring = Wiring(chips.get("v5e"), (16, 16), places)
    groups = tuple(tuple(range(row * 16, row * 16 + 16)) for row in range(16))
    collective = Collective(kind, "", 1, 10**9, groups, "bf16")
    assert roofline.torus_seconds(wiring)(collective) == pytest.approx(seconds)


def test_a_ring_of_permutations():
    places = np.stack(np.unravel_index(np.arange(256), (16, 16)), axis=1)
    wiring = Wiring(chips.get("v5e"), (16, 16), places)
    pairs = tuple((i, i // 16 * 16 + (i + 1) % 16) for i in range(256))
    permute = Collective("collective-permute", "", 1, 10**6, pairs, "f32")
    assert roofline.torus_seconds(wiring)(permute) == pytest.approx(1e6 / 50e9)
