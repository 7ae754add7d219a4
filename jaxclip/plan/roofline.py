"""How long a step takes at best and at worst, from what it does and what the chip can do.

A model, not a measurement. It knows three resources: the matrix unit, the memory and the wires.

* A kernel takes as long as the slower of its matrix products at the chip's peak and its bytes at
  the memory's bandwidth (Williams et al. 2009, doi:10.1145/1498765.1498785): inside a kernel XLA
  streams the data past the matrix unit.
* A collective takes as long as its bytes at the bandwidth of the links that its group has.
* At worst nothing overlaps: kernel after kernel, collective after collective. At best everything
  does: the busiest of the three resources is never idle.

Not in it: vector arithmetic (softmax, activations) beyond the memory traffic it causes, matrix
units that odd shapes fill badly, latencies of kernels and links, the input pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from jaxclip.plan.chips import Chip
from jaxclip.plan.cost import Collective, Cost, Kernel
from jaxclip.plan.interconnect import Wiring


class Roofline(NamedTuple):
    """Seconds of a step on one device.

    Attributes:
      compute: all matrix products at the chip's peak.
      memory: all bytes at the memory's bandwidth.
      network: all collectives, one after another.
      kernels: all kernels one after another, each at the slower of its two resources.
    """

    compute: float
    memory: float
    network: float
    kernels: float

    @property
    def best(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.compute, self.memory, self.network)

    @property
    def worst(self) -> float:
        """Seconds if no kernel overlaps with another one or with a collective."""
        return self.kernels + self.network


def roofline(cost: Cost, chip: Chip, network: Callable[[Collective], float]) -> Roofline:
    """Model the time of a step.

    Args:
      cost: what it does (:func:`jaxclip.plan.cost.analyse`).
      chip: peaks of the device.
      network: seconds of one run of a collective, :func:`torus_seconds` for instance.
    """
    return Roofline(
        compute=sum(k.passes * k.runs for k in cost.kernels) / chip.matmul_flops,
        memory=cost.bytes / chip.hbm_bandwidth,
        network=sum(network(c) * c.runs for c in cost.collectives),
        kernels=sum(kernel_seconds(k, chip) * k.runs for k in cost.kernels),
    )


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """Seconds of one run of a kernel."""
    return max(kernel.passes / chip.matmul_flops, kernel.bytes / chip.hbm_bandwidth)


def torus_seconds(wiring: Wiring) -> Callable[[Collective], float]:
    """Seconds of a collective in a torus, by the algorithms that use all links at once.

    All-gather and reduce-scatter of V bytes in a group of n take V (n-1)/n over the bandwidth
    into a device, an all-reduce one after the other. An all-to-all of V bytes a device is bound by
    the middle of the ring, which half of all the data has to pass: V/8 times n over one link.
    """

    def seconds(collective: Collective) -> float:
        if collective.kind == "collective-permute":
            pairs = tuple((a, b) for a, b in collective.groups)
            return collective.bytes / wiring.permute_bandwidth(pairs)
        bandwidth = wiring.group_bandwidth(collective.groups)
        if collective.kind.endswith("all-to-all"):
            return collective.bytes * collective.group_size / 4 / bandwidth
        return collective.sent / bandwidth

    return seconds


def flat_seconds(bandwidth: float) -> Callable[[Collective], float]:
    """Seconds of a collective between devices that all reach each other at one bandwidth."""

    def seconds(collective: Collective) -> float:
        return collective.sent / bandwidth if bandwidth < math.inf else 0.0

    return seconds
