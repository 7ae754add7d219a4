"""Who talks to whom in a collective, and how fast the wires between them are."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from jaxclip.plan.chips import Chip

Groups = tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=1024)
def replica_groups(text: str) -> Groups:
    """Groups of device numbers of a collective.

    Args:
      text: ``{{0,1},{2,3}}``, ``[2,2]<=[4]``, ``[2,2]<=[2,2]T(1,0)``, or
        ``mesh['a'=2,'b'=2] {'b'}`` with an optional device order; ``{}`` is the empty tuple, which
        means all devices.

    Raises:
      ValueError: anything else.
    """
    text = text.strip()
    if text.startswith("mesh["):
        return _named_groups(text)
    if text.startswith("["):
        return _iota_groups(text)
    if text.startswith("{"):
        inner = re.findall(r"\{([\d,\s]*)\}", text[1:-1])
        return tuple(tuple(int(n) for n in group.split(",")) for group in inner if group.strip())
    raise ValueError(f"unknown form of replica groups: {text[:80]!r}")


def _iota_groups(text: str) -> Groups:
    match = re.fullmatch(r"\[([\d,]+)\]<=(.*)", text)
    if match is None:
        raise ValueError(f"unknown form of replica groups: {text[:80]!r}")
    rows = _iota(match.group(2)).reshape(_integers(match.group(1))[0], -1)
    return tuple(tuple(map(int, row)) for row in rows)


def _iota(text: str) -> np.ndarray:
    """``[16,4]T(1,0)``: the numbers from 0 in that shape, transposed."""
    match = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if match is None:
        raise ValueError(f"unknown order of devices: {text[:80]!r}")
    shape = _integers(match.group(1))
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose(_integers(match.group(2))) if match.group(2) else ids


def _named_groups(text: str) -> Groups:
    match = re.fullmatch(
        r"mesh\[(?P<axes>[^\]]*)\](?:,? *device_ids=\((?P<ids>.*)\))? *\{(?P<used>[^}]*)\}", text
    )
    if match is None:
        raise ValueError(f"unknown form of replica groups: {text[:80]!r}")
    sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", match["axes"])}
    axes, shape = list(sizes), tuple(sizes.values())
    order = match["ids"]
    if order is None:
        ids = np.arange(math.prod(shape))
    elif order.startswith("["):
        ids = _iota(order)
    else:
        ids = np.asarray(_integers(order))
    ids = ids.reshape(shape)
    used_axes: list[int] = []
    for name, before, size in re.findall(r"'?(\w+)'?(?::\((\d+)\)(\d+))?", match["used"]):
        axis = axes.index(name)
        if before:  # 'a':(before)size is a part of the axis: cut it in three
            parts = (int(before), int(size), -1)
            ids = ids.reshape(*ids.shape[:axis], *parts, *ids.shape[axis + 1 :])
            axes[axis : axis + 1] = [f"{name}/outer", name, f"{name}/inner"]
            used_axes = [n + 2 if n > axis else n for n in used_axes]
            axis += 1
        used_axes.append(axis)
    rest = [n for n in range(ids.ndim) if n not in used_axes]
    size = math.prod(ids.shape[n] for n in used_axes)
    rows = ids.transpose([*rest, *used_axes]).reshape(-1, size)
    return tuple(tuple(map(int, row)) for row in rows)


def source_target_pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Pairs ``{{0,1},{1,2}}`` of a permutation: who sends to whom."""
    return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text))


def mesh_axes(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """Axes of the mesh along which the members of the groups differ.

    Args:
      groups: groups of positions in the flattened mesh, which is how a program numbers devices.
      mesh: the mesh it was compiled for.
    """
    shape = mesh.devices.shape
    varying = [False] * len(shape)
    for group in groups:
        places = np.unravel_index(np.asarray(group), shape)
        for axis, coordinates in enumerate(places):
            varying[axis] |= bool(np.any(coordinates != coordinates[0]))
    return tuple(name for name, varies in zip(mesh.axis_names, varying, strict=True) if varies)


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Where the devices of a mesh sit in a torus.

    Attributes:
      chip: its chips.
      shape: chips along each dimension.
      coordinates: int[n, dims] of the devices, in the order of the flattened mesh.
    """

    chip: Chip
    shape: tuple[int, ...]
    coordinates: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh, chip: Chip, shape: tuple[int, ...]) -> Wiring:
        """Wiring of a mesh over the devices of one slice."""
        places = [device.coords[: len(shape)] for device in mesh.devices.flat]
        return cls(chip, shape, np.asarray(places))

    @functools.cached_property
    def closed(self) -> tuple[bool, ...]:
        """Which dimensions are closed to a ring."""
        whole = [size % self.chip.wrap_from == 0 for size in self.shape]
        # Cubes are closed together by optical switches, planes dimension by dimension.
        return tuple([all(whole)] * len(whole)) if self.chip.torus_dims == 3 else tuple(whole)

    def group_bandwidth(self, groups: Groups) -> float:
        """Bytes/s at which every member of a group can take in what the others send out.

        All groups are at work at the same time; the slowest counts.

        A dimension along which a group extends contributes the links of a device along it: two
        directions if the group goes round a ring, one if its ends are open (the last device has
        one neighbour only). Where a group takes only every s-th device along a dimension, s groups
        share the links.
        """
        slowest = math.inf
        for group in groups:
            places = self.coordinates[np.asarray(group)]
            total = 0.0
            for dim, size in enumerate(self.shape):
                taken = np.unique(places[:, dim])
                if len(taken) == 1:
                    continue
                stride = int(np.min(np.diff(taken)))
                ring = self.closed[dim] and stride * len(taken) == size
                total += self.chip.link_bandwidth * (2 if ring else 1) / stride
            slowest = min(slowest, total or math.inf)
        return slowest

    def permute_bandwidth(self, pairs: Sequence[tuple[int, int]]) -> float:
        """Bytes/s of a permutation: a link over the number of messages on the busiest link.

        Messages go along one dimension after the other, the short way round a ring.
        """
        load: Counter[tuple[int, ...]] = Counter()
        for source, target in pairs:
            here = list(map(int, self.coordinates[source]))
            for dim, size in enumerate(self.shape):
                distance = int(self.coordinates[target][dim]) - here[dim]
                if self.closed[dim] and abs(distance) > size / 2:
                    distance -= int(math.copysign(size, distance))
                sign = 1 if distance > 0 else -1
                for _ in range(abs(distance)):
                    load[(*here, dim, sign)] += 1
                    here[dim] = (here[dim] + sign) % size
        busiest = max(load.values(), default=0)
        return self.chip.link_bandwidth / busiest if busiest else math.inf


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))
