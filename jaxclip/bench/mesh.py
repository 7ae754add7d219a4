"""Training step on every mesh of the devices at hand, and what accumulation costs.

    python -m jaxclip.bench mesh --preset vit_b16 --batch_size 256 precision.compute_dtype=bfloat16
    python -m jaxclip.bench mesh --virtual_devices 8 --batch_size 32
    python -m jaxclip.bench mesh --micro_batches 1,4 --meshes 1x1x1

A mesh is written ``data x fsdp x tensor``; its sharding preset is the one that uses its axes.
Arguments of the form ``key=value`` change the configuration. Virtual devices share the cores of one
CPU: their times say whether a mesh works, not how it scales.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxclip.bench import step as step_bench
from jaxclip.bench import timing
from jaxclip.config import Config
from jaxclip.markdown import table
from jaxclip.parallel import AXES

Shape = tuple[int, int, int]


def meshes(devices: int) -> list[Shape]:
    """All ways to write a number of devices as ``data x fsdp x tensor``, data first."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    shapes = itertools.product(sizes, sizes, sizes)
    return sorted((s for s in shapes if math.prod(s) == devices), reverse=True)


def sharding_of(shape: Shape) -> str:
    """The sharding preset that uses the axes of a mesh."""
    _, fsdp, tensor = shape
    names = [name for name, size in (("fsdp", fsdp), ("tp", tensor)) if size > 1]
    return "+".join(names) or "dp"


def time_meshes(
    base: Config, shapes: Sequence[Shape], micro_batches: Sequence[int], **turns: Any
) -> list[list[str]]:
    """Rows of a table: a step on every mesh with every number of micro-batches, in turn.

    ``turns`` goes to :func:`jaxclip.bench.timing.take_turns`.
    """
    trainers = {}
    for shape, count in itertools.product(shapes, micro_batches):
        config = {
            **base,
            "mesh": dict(zip(AXES, shape, strict=True)),
            "sharding": sharding_of(shape),
            "num_micro_batches": count,
        }
        trainers[shape, count] = step_bench.make_trainer(config)
    names = {key: f"{'x'.join(map(str, key[0]))}/{key[1]}" for key in trainers}
    times = timing.take_turns(
        {names[key]: trainer.step for key, trainer in trainers.items()},
        reference=names[next(iter(trainers))],
        **turns,
    )
    rows = [["mesh", "sharding", "micro-batches", "median ms", "ratio", "images/s", "memory"]]
    for key, trainer in trainers.items():
        measured, (shape, count) = times[names[key]], key
        rows.append(
            [
                " x ".join(map(str, shape)),
                sharding_of(shape),
                str(count),
                f"{1e3 * measured.median:.1f}",
                f"{measured.ratio:.2f}",
                f"{base['global_batch_size'] / measured.median:.0f}",
                f"{trainer.memory_bytes / 2**20:.1f} MiB",
            ]
        )
    return rows


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench mesh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="tiny", help="model preset (default: tiny)")
    parser.add_argument("--batch_size", type=int, default=128, help="global batch (default: 128)")
    parser.add_argument("--rounds", type=int, default=10, help="measured steps (default: 10)")
    parser.add_argument("--meshes", help="as 8x1x1,2x2x2 (default: all of the devices)")
    parser.add_argument("--micro_batches", default="1", help="numbers, with commas (default: 1)")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count CPU seconds: on a busy machine"
    )
    parser.add_argument("--virtual_devices", type=int, help="divide the CPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides")
    options = parser.parse_args(list(arguments))
    if options.virtual_devices:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={options.virtual_devices}"
        )
    try:
        config = step_bench.resolve_preset(
            {"model": {"preset": options.preset}, "global_batch_size": options.batch_size},
            options.overrides,
        )
        shapes = (
            [_shape(text) for text in options.meshes.split(",")]
            if options.meshes
            else meshes(jax.device_count())
        )
        counts = [int(text) for text in options.micro_batches.split(",")]
        clock = time.process_time if options.cpu_time else time.perf_counter
        rows = time_meshes(config, shapes, counts, rounds=options.rounds, clock=clock)
    except ValueError as error:
        parser.exit(2, f"jaxclip.bench mesh: error: {error}\n")
    print(
        f"{options.preset}, global batch {options.batch_size}, "
        f"{config['precision']['compute_dtype']}, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; medians of {options.rounds} steps in turn"
        f"{', CPU time' if options.cpu_time else ''}\n"
    )
    print(table(rows))
    return 0


def _shape(text: str) -> Shape:
    sizes = tuple(int(n) for n in text.split("x"))
    if len(sizes) != 3:
        raise ValueError(f"mesh {text!r} is not of the form data x fsdp x tensor, as 4x2x1")
    return sizes[0], sizes[1], sizes[2]
