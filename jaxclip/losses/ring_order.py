"""The order in which a ring goes through the chips of a TPU slice.

A transfer to a chip that is no neighbour occupies all links on its way, and the TPU's compiler has
a program wait for such permutations: only where every device sends to a neighbour does a transfer
run behind computation. A mesh lies row by row in a slice, and at the end of a row the next one
begins at the other side. So the ring takes a way of its own: a Hamiltonian cycle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

Coordinates = tuple[int, ...]


def ring_order(devices: Sequence[Any]) -> tuple[int, ...]:
    """Positions of the devices in the order of a ring.

    Args:
      devices: in the order of the mesh; those of TPUs have ``coords``, and ``slice_index`` where
        there are several slices.

    Returns:
      A permutation of ``range(len(devices))``. Its neighbours, first and last included, are
      neighbours in the slice if the number of its chips is even; of an odd number only the closing
      transfer is not to a neighbour. Slices come one after another. The order of the mesh where
      nothing is known of the wires, or the chips are no full box.
    """
    slices: dict[int, dict[Coordinates, list[int]]] = {}
    for position, device in enumerate(devices):
        coordinates = getattr(device, "coords", None)
        # GPUs have some, too, but no torus.
        if coordinates is None or device.platform != "tpu":
            return tuple(range(len(devices)))
        chips = slices.setdefault(getattr(device, "slice_index", None) or 0, {})
        chips.setdefault(tuple(coordinates), []).append(position)
    order: list[int] = []
    for _, chips in sorted(slices.items()):
        corners = [(min(axis), max(axis) + 1) for axis in zip(*chips, strict=True)]
        box = set(itertools.product(*(range(low, high) for low, high in corners)))
        if box != set(chips):
            return tuple(range(len(devices)))
        for step in cycle([high - low for low, high in corners]):
            chip = tuple(low + offset for (low, _), offset in zip(corners, step, strict=True))
            order += chips[chip]  # the cores of a chip
    return tuple(order)


def cycle(shape: Sequence[int]) -> list[Coordinates]:
    """A way through all points of a grid by steps to neighbours that ends beside its start.

    That needs an even number of points and two sides of at least 2; else only the way is one of
    steps to neighbours, and its end lies apart. (On a line that is closed by a wrap-around link
    they are neighbours in the slice.)

    Args:
      shape: sizes of the grid.
    """
    even = [axis for axis, size in enumerate(shape) if size % 2 == 0]
    if not even or sum(size > 1 for size in shape) < 2:
        return _snake(shape)
    # One even side against a way through all others: along the first point of that way down the
    # side, and back to and fro over the rest of it.
    side = even[0]
    others = _snake([size for axis, size in enumerate(shape) if axis != side])
    flat = [(i, 0) for i in range(shape[side])]
    for i in reversed(range(shape[side])):
        rest = range(1, len(others))
        flat += [(i, j) for j in (rest if (shape[side] - 1 - i) % 2 == 0 else reversed(rest))]
    return [(*others[j][:side], i, *others[j][side:]) for i, j in flat]


def _snake(shape: Sequence[int]) -> list[Coordinates]:
    """A way through all points of a grid by steps to neighbours."""
    if not shape:
        return [()]
    rest = _snake(shape[1:])
    return [
        (i, *point) for i in range(shape[0]) for point in (rest if i % 2 == 0 else reversed(rest))
    ]
