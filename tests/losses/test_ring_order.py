"""The ring's way through a slice."""

import itertools
import math
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxclip.losses import ring_order


def apart(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def devices(shape, cores=1, slices=None, start=(0, 0, 0), platform="tpu"):
    """What devices tell of themselves, in the order of a mesh."""
    found = []
    for s in range(slices or 1):
        for point in itertools.product(*map(range, shape)):
            for core in range(cores):
                coords = tuple(a + b for a, b in zip(point, start, strict=True))
                device = types.SimpleNamespace(platform=platform, coords=coords, core_on_chip=core)
                if slices is not None:
                    device.slice_index = s
                found.append(device)
    return found


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_a_way_through_every_point(shape):
    way = ring_order.cycle(shape)
    assert sorted(way) == list(itertools.product(*map(range, shape)))
    assert all(apart(a, b) == 1 for a, b in itertools.pairwise(way))
    if math.prod(shape) % 2 == 0 and sum(size > 1 for size in shape) >= 2:
        assert apart(way[-1], way[0]) == 1


def test_the_smallest_cycle_by_hand():
    assert ring_order.cycle([2, 3]) == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 2), (0, 1)]


@pytest.mark.parametrize("shape", [(16, 16, 1), (4, 4, 4), (8, 4, 1), (3, 2, 4)])
def test_neighbours_on_the_ring_are_neighbours_in_the_slice(shape):
    chips = devices(shape, start=(4, 0, 2))
    # The mesh may lie in the slice in any order.
    np.random.default_rng(0).shuffle(chips)
    order = ring_order.ring_order(chips)
    assert sorted(order) == list(range(len(chips)))
    places = [chips[position].coords for position in order]
    assert all(apart(a, b) == 1 for a, b in zip(places, places[1:] + places[:1], strict=True))


def test_cores_of_a_chip_stay_together_and_slices_come_one_after_another():
    chips = devices((2, 2, 1), cores=2, slices=2)
    order = ring_order.ring_order(chips)
    assert [chips[i].slice_index for i in order] == [0] * 8 + [1] * 8
    places = [chips[i].coords for i in order]
    assert all(places[i] == places[i + 1] for i in range(0, 16, 2))


def test_where_nothing_is_known_it_is_the_order_of_the_mesh():
    unknown = [types.SimpleNamespace(platform="cpu") for _ in range(3)]
    assert ring_order.ring_order(unknown) == (0, 1, 2)
    assert ring_order.ring_order(devices((2, 2, 1), platform="gpu")) == (0, 1, 2, 3)
    chips = devices((2, 2, 1))
    assert ring_order.ring_order(chips) == (0, 2, 3, 1)
    assert ring_order.ring_order(chips[:3]) == (0, 1, 2)  # no full box
