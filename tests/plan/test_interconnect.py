"""Groups of devices, axes of the mesh, and the wires between them."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxclip.plan import chips, interconnect
from jaxclip.plan.interconnect import Wiring, mesh_axes, replica_groups


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("{}", ()),
        ("{{0}}", ((0,),)),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=1,'b'=2,'c'=2], device_ids=([2,2]T(1,0)) {'b'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", ((3, 2), (1, 0))),
        # A part of an axis: 'a' of 8 is 2 x 2 x 2, the middle one is used.
        ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ],
)
def test_replica_groups(text, groups):
    assert replica_groups(text) == groups


def test_unknown_groups_are_an_error():
    for text in ("all", "[2,2]", "mesh['a'=2]"):
        with pytest.raises(ValueError, match="unknown"):
            replica_groups(text)


def test_axes_of_groups():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    assert mesh_axes(((0, 1), (2, 3), (4, 5), (6, 7)), mesh) == ("tensor",)
    assert mesh_axes(((0, 2), (1, 3)), mesh) == ("fsdp",)
    assert mesh_axes(((0, 1, 4, 5), (2, 3, 6, 7)), mesh) == ("data", "tensor")
    assert mesh_axes(((0,), (1,)), mesh) == ()


def wiring(chip, *shape):
    places = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
    return Wiring(chips.get(chip), shape, places)


LINK = 50e9  # of a v5e


@pytest.mark.parametrize(
    ("shape", "group", "links"),
    [
        ((16, 16), range(16), 2),  # a closed row: two directions
        ((16, 16), range(256), 4),  # the whole pod: both dimensions
        ((4, 4), range(4), 1),  # an open row
        ((4, 4), range(16), 2),
        ((16, 16), range(4), 1),  # a quarter of a row is open
        ((16, 16), range(0, 16, 4), 2 / 4),  # every fourth: closed, but four groups share the row
        ((8, 16), range(0, 128, 16), 1),
        ((4, 4), [5], math.inf),
    ],
)
def test_bandwidth_of_a_group_on_v5e(shape, group, links):
    assert wiring("v5e", *shape).group_bandwidth((tuple(group),)) == pytest.approx(links * LINK)


def test_cubes_are_closed_together():
    assert wiring("v5p", 4, 4, 4).closed == (True, True, True)
    assert wiring("v5p", 2, 4, 4).closed == (False, False, False)
    assert wiring("v5e", 8, 16).closed == (False, True)
    everybody = (tuple(range(64)),)
    assert wiring("v5p", 4, 4, 4).group_bandwidth(everybody) == pytest.approx(6 * 100e9)


def test_permutations_are_bound_by_the_busiest_link():
    ring = [(i, (i + 1) % 16) for i in range(16)]
    # Along a closed row everybody uses a link of its own.
    assert wiring("v5e", 16, 16).permute_bandwidth(ring) == pytest.approx(LINK)
    # On an open row of four the last one's message goes back through all of it, the other way.
    back = [(i, (i + 1) % 4) for i in range(4)]
    assert wiring("v5e", 4, 4).permute_bandwidth(back) == pytest.approx(LINK)
    # Two messages over one link share it.
    assert wiring("v5e", 4, 4).permute_bandwidth([(0, 2), (1, 3)]) == pytest.approx(LINK / 2)
    assert wiring("v5e", 4, 4).permute_bandwidth([(3, 3)]) == math.inf


def test_pairs():
    assert interconnect.source_target_pairs("{{0,1},{1,0}}") == ((0, 1), (1, 0))
