"""Time and memory of the blockwise contrastive losses against the plain ones.

    python -m jaxclip.bench loss                                  # value and gradient, one device
    python -m jaxclip.bench loss --sizes 8192,32768 --width 768 --all_devices
    python -m jaxclip.bench loss memory --virtual_devices 16      # compiled only, nothing runs

The first form times one step of value and gradient with respect to embeddings, scale and bias; the
second compiles it for more and more devices with a fixed batch a device and prints the temporaries
a device needs. ``--virtual_devices`` divides the CPU into that many devices.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxclip import losses, parallel
from jaxclip.bench import timing
from jaxclip.markdown import table

_NAMES = ("softmax", "sigmoid")


def value_and_grad(name: str, mesh: Mesh, **options: Any) -> Any:
    """Jitted ``(images, texts, logit_scale, logit_bias) -> (loss, four gradients)``."""
    loss = losses.from_config({"name": name, **options})
    extra = {"mesh": mesh} if name.endswith("_blockwise") else {}

    def run(images: Any, texts: Any, scale: Any, bias: Any) -> jax.Array:
        return loss(images, texts, logit_scale=scale, logit_bias=bias, **extra)[0]

    return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3)))


def made_up_embeddings(size: int, width: int, mesh: Mesh) -> tuple[Any, ...]:
    """Unit rows, matching pairs correlated, and CLIP's initial temperature."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((size, width), np.float32)
    texts = images + rng.standard_normal((size, width), np.float32)
    pair = tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    return (*parallel.to_global(pair, mesh), jnp.float32(np.log(1 / 0.07)), jnp.float32(-10.0))


def temporary_bytes(name: str, mesh: Mesh, size: int, width: int, **options: Any) -> int:
    """Bytes of temporaries a device, as compiled."""
    rows = jax.ShapeDtypeStruct((size, width), jnp.float32, sharding=parallel.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    program = value_and_grad(name, mesh, **options).lower(rows, rows, scalar, scalar).compile()
    return program.memory_analysis().temp_size_in_bytes


def time_losses(
    sizes: Sequence[int],
    width: int,
    tile_size: int,
    precision: str,
    mesh: Mesh,
    **turns: Any,
) -> list[list[str]]:
    """Rows of a table: each loss at each size, plain and blockwise in turn.

    ``turns`` goes to :func:`jaxclip.bench.timing.take_turns`.
    """
    rows = [["loss", "batch", "plain ms", "blockwise ms", "ratio", "plain temp", "blockwise temp"]]
    for name in _NAMES:
        for size in sizes:
            inputs = made_up_embeddings(size, width, mesh)
            variants: dict[str, dict[str, Any]] = {
                name: {},
                f"{name}_blockwise": {"tile_size": tile_size},
            }
            candidates: dict[str, Callable[[], object]] = {}
            for variant, options in variants.items():
                run = value_and_grad(variant, mesh, precision=precision, **options)
                candidates[variant] = functools.partial(_wait, run, inputs)
            times = timing.take_turns(candidates, reference=name, **turns)
            plain, blockwise = times[name], times[f"{name}_blockwise"]
            memory = [
                temporary_bytes(variant, mesh, size, width, precision=precision, **options)
                for variant, options in variants.items()
            ]
            rows.append(
                [
                    name,
                    str(size),
                    f"{1e3 * plain.median:.1f}",
                    f"{1e3 * blockwise.median:.1f}",
                    f"{blockwise.ratio:.2f}",
                    *map(_mib, memory),
                ]
            )
    return rows


def memory_by_devices(rows_each: int, width: int, tile_size: int) -> list[list[str]]:
    """Rows of a table: temporaries a device while the global batch grows with the devices."""
    table = [["devices", "global batch", *(f"{n}{v}" for n in _NAMES for v in ("", " blockwise"))]]
    count = 1
    while count <= jax.device_count():
        mesh = parallel.make_mesh({"data": -1}, devices=jax.devices()[:count])
        size = count * rows_each
        cells = []
        for name in _NAMES:
            cells.append(temporary_bytes(name, mesh, size, width))
            blockwise = f"{name}_blockwise"
            cells.append(temporary_bytes(blockwise, mesh, size, width, tile_size=tile_size))
        table.append([str(count), str(size), *map(_mib, cells)])
        count *= 2
    return table


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench loss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=["time", "memory"], default="time")
    parser.add_argument("--sizes", default="1024,2048,4096", help="global batches, with commas")
    parser.add_argument("--rows", type=int, default=512, help="memory: batch of a device")
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--tile_size", type=int, default=512)
    parser.add_argument("--precision", default="highest", help="of the matrix products")
    parser.add_argument("--rounds", type=int, default=10, help="measured rounds")
    parser.add_argument(
        "--cpu_time", action="store_true", help="count CPU seconds: on a busy machine"
    )
    parser.add_argument("--all_devices", action="store_true", help="not only the first")
    parser.add_argument("--virtual_devices", type=int, help="divide the CPU")
    options = parser.parse_args(list(arguments))
    if options.virtual_devices:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={options.virtual_devices}"
        )
    if options.what == "memory":
        print(f"batch of a device {options.rows}, width {options.width}, float32\n")
        print(table(memory_by_devices(options.rows, options.width, options.tile_size)))
        return 0
    try:
        sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        parser.exit(2, f"jaxclip.bench loss: error: --sizes {options.sizes!r} are no numbers\n")
    devices = jax.devices() if options.all_devices else jax.devices()[:1]
    mesh = parallel.make_mesh({"data": -1}, devices=devices)
    print(
        f"{len(devices)} x {devices[0].device_kind}, width {options.width}, tiles of "
        f"{options.tile_size}, precision {options.precision}; medians of {options.rounds} rounds"
        f"{', CPU time' if options.cpu_time else ''}\n"
    )
    rows = time_losses(
        sizes,
        options.width,
        options.tile_size,
        options.precision,
        mesh,
        rounds=options.rounds,
        clock=time.process_time if options.cpu_time else time.perf_counter,
    )
    print(table(rows))
    return 0


def _wait(run: Callable[..., Any], inputs: tuple[Any, ...]) -> object:
    return jax.block_until_ready(run(*inputs))


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
