"""The devices at hand as a chip: peaks measured on the spot, steps measured against the model."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.config import Config
from jaxclip.plan.chips import Chip
from jaxclip.plan.planner import Plan
from jaxclip.plan.topology import Topology


def at_hand(dtype: str = "float32") -> Topology:
    """The devices at hand, with peaks measured on the first of them.

    Virtual devices of a CPU share its cores and its memory: each gets its part.

    Args:
      dtype: compute dtype of the step; matrix products are measured in it.
    """
    devices = jax.devices()
    first = devices[0]
    sharers = len(jax.local_devices()) if first.platform == "cpu" else 1
    limit = (first.memory_stats() or {}).get("bytes_limit")
    flops, bandwidth = matmul_rate(dtype), memory_rate()
    chip = Chip(
        name=first.device_kind,
        hbm_bytes=limit,
        matmul_flops=flops / sharers,
        hbm_bandwidth=bandwidth / sharers,
        # Devices of one machine talk through its memory.
        link_bandwidth=bandwidth / sharers,
        torus_dims=0,
        wrap_from=1,
        sources=(f"measured: {dtype} matrix product, copy of a large array",),
    )
    return Topology(f"{len(devices)} x {first.device_kind}", chip, (), devices)


def matmul_rate(dtype: str = "float32") -> float:
    """FLOP/s of the best of several large matrix products on the first device."""
    best = 0.0
    for size in (1024, 2048) if jax.devices()[0].platform == "cpu" else (4096, 8192):
        a = jnp.ones((size, size), dtype)
        seconds = _best_of(jax.jit(jnp.matmul), a, a)
        best = max(best, 2 * size**3 / seconds)
    return best


def memory_rate() -> float:
    """Bytes/s, reading and writing, of an array too large for any cache, on the first device."""
    size = 2**26 if jax.devices()[0].platform == "cpu" else 2**29
    array = jnp.ones((size,), jnp.float32)
    return 2 * array.nbytes / _best_of(jax.jit(lambda x: x + 1), array)


def _best_of(function: Callable[..., jax.Array], *args: jax.Array, times: int = 5) -> float:
    function(*args).block_until_ready()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function(*args).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


class Check(NamedTuple):
    """The model against the clock.

    Attributes:
      seconds: measured seconds a step (median), each.
      best: modelled, everything overlapping.
      worst: modelled, nothing overlapping.
    """

    seconds: float
    best: float
    worst: float

    @property
    def off(self) -> float:
        """How far the measurement is outside the range: measured over the nearer end, 1 inside."""
        if self.seconds > self.worst:
            return self.seconds / self.worst
        return self.seconds / self.best if self.seconds < self.best else 1.0


def check(config: Config, plan: Plan, *, steps: int = 5) -> Check:
    """Run steps on made-up data on the devices at hand and compare them with their plan.

    Args:
      config: the configuration that was planned.
      plan: its plan on the devices at hand.
      steps: measured steps, after two that are not.

    Raises:
      ValueError: the plan was refused by the compiler.
    """
    from jaxclip.train import setup

    if plan.roofline is None:
        raise ValueError("the step does not fit the devices at hand: there is nothing to measure")
    experiment = setup.build(config)
    state = experiment.init_state()
    rng = np.random.default_rng(0)
    vocabulary = config["model"]["text"]["vocab_size"]
    make = {
        "image": functools.partial(rng.integers, 0, 256),
        "text": functools.partial(rng.integers, 1, vocabulary),
    }
    batch = {
        name: jax.device_put(make[name](size=leaf.shape).astype(leaf.dtype), leaf.sharding)
        for name, leaf in experiment.abstract_batch().items()
    }
    seconds = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        state, metrics = experiment.train_step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return Check(float(np.median(seconds[2:])), plan.roofline.best, plan.roofline.worst)
