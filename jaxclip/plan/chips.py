"""What a chip can do: peaks and sizes, from the vendor's documents, or measured on the spot."""

from __future__ import annotations

import dataclasses

from jaxclip.registry import hint


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one device.

    Attributes:
      name: as in a topology's name, or the device's own.
      hbm_bytes: memory that the compiler lets a program have, bytes; None where it sets no limit.
      matmul_flops: matrix FLOP/s, bfloat16 inputs (float32 on a CPU).
      hbm_bandwidth: bytes/s between memory and the core.
      link_bandwidth: bytes/s over one link to a neighbour, in one direction.
      torus_dims: dimensions of the interconnect: two links each.
      wrap_from: size from which on a dimension of a slice is closed to a ring, and of which it has
        to be a multiple.
      sources: where the numbers are from.
    """

    name: str
    hbm_bytes: int | None
    matmul_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus_dims: int
    wrap_from: int
    sources: tuple[str, ...]


_GIB = 2**30
_LIMIT = "HBM: the limit that libtpu's compiler names when it refuses a program"
_DOCS = "Cloud TPU documentation, system architecture"

# Links: the documents give the bandwidth of all ports of a chip, both directions added up; one
# link has a 1/(2 x ports) of it in each direction. Rings: v5e and v6e slices are cut from a pod of
# 16 x 16 whose dimensions close only when whole; v4 and v5p are wired from cubes of 4 x 4 x 4 by
# optical switches, which close every dimension that is a multiple of 4.
TPUS: dict[str, Chip] = {
    "v4": Chip(
        name="v4",
        hbm_bytes=round(30.75 * _GIB),
        matmul_flops=275e12,
        hbm_bandwidth=1200e9,
        link_bandwidth=50e9,
        torus_dims=3,
        wrap_from=4,
        sources=(
            f"{_DOCS}: TPU v4",
            "links: Jouppi et al. 2023, arXiv:2304.01433, table 4",
            _LIMIT,
        ),
    ),
    "v5e": Chip(
        name="v5e",
        hbm_bytes=round(15.75 * _GIB),
        matmul_flops=197e12,
        hbm_bandwidth=819e9,
        link_bandwidth=400e9 / 8,
        torus_dims=2,
        wrap_from=16,
        sources=(f"{_DOCS}: TPU v5e (400 GB/s, 4 ports)", _LIMIT),
    ),
    "v5p": Chip(
        name="v5p",
        hbm_bytes=round(95.74 * _GIB),
        matmul_flops=459e12,
        hbm_bandwidth=2765e9,
        link_bandwidth=1200e9 / 12,
        torus_dims=3,
        wrap_from=4,
        sources=(f"{_DOCS}: TPU v5p (1200 GB/s, 6 ports)", _LIMIT),
    ),
    "v6e": Chip(
        name="v6e",
        hbm_bytes=round(31.25 * _GIB),
        matmul_flops=918e12,
        hbm_bandwidth=1638e9,
        link_bandwidth=800e9 / 8,
        torus_dims=2,
        wrap_from=16,
        sources=(f"{_DOCS}: TPU v6e (800 GB/s, 4 ports)", _LIMIT),
    ),
}


def get(name: str) -> Chip:
    """The chip of a name.

    Raises:
      ValueError: there is none; the message names the nearest.
    """
    if name not in TPUS:
        raise ValueError(f"unknown chip {name!r}{hint(name, TPUS, cutoff=0.6)}")
    return TPUS[name]
