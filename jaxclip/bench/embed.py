"""Pictures a second of `jaxclip embed`, against loops of open_clip and of transformers.

    python -m jaxclip.bench embed
    python -m jaxclip.bench embed --preset siglip_b16 --count 512 --batch_size 64

Pictures are written as JPEG files and random weights as each library's folder; all embed the same
files with the same weights, in turns, on this machine's CPUs. Ours is the whole command: index,
shards on disk and all. The others are a loop over a ``DataLoader``: without workers, with one for
each CPU, and with one and a thread of torch's less, which waits for fewer others on a busy machine.
Printed are pictures a second (median of the rounds); the median over rounds of each
one's seconds divided by ours, on the clock and of CPUs (of all its processes, which other work on
the machine hardly changes); and the largest difference of an embedding.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxclip.bench import timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxclip.bench embed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="vit_b32_quickgelu", help="that both have")
    parser.add_argument("--count", type=int, default=128, help="pictures")
    parser.add_argument("--side", type=int, default=400, help="their longer side")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the others")
    args = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_pictures(folder / "pictures", args.count, args.side)
        libraries = write_weights(folder, args.preset)
        ours = embedder(folder, folder / libraries[0], args.batch_size)
        candidates = {"jaxclip": OnCPUs(ours)}
        if not args.alone:
            candidates |= _others(folder, libraries, args.batch_size)
        _compare(args, candidates)
    return 0


def _others(folder: pathlib.Path, libraries: Sequence[str], batch_size: int) -> dict[str, OnCPUs]:
    from jaxclip.bench import torch_embed

    cpus = os.cpu_count() or 1
    return {
        f"{name}, {workers} workers, {threads} threads": OnCPUs(
            torch_embed.Embedder(
                name, folder / name, folder / "pictures", batch_size, workers, threads
            )
        )
        for name in libraries
        for workers, threads in ((0, cpus), (cpus, cpus), (1, max(1, cpus - 1)))
    }


def _compare(args: argparse.Namespace, candidates: Mapping[str, OnCPUs]) -> None:
    found = timing.take_turns(candidates, reference="jaxclip", rounds=args.rounds, warmup=1)
    ours = candidates["jaxclip"]
    print(f"{args.preset}, {args.count} JPEG files of up to {args.side} pixels, batches of "
          f"{args.batch_size}")  # fmt: skip
    print(f"{'':<36} {'pictures/s':>10} {'seconds / ours':>15} {'CPU s / ours':>13} "
          f"{'difference':>11}")  # fmt: skip
    shares = {}
    for key, each in found.items():
        one = candidates[key]
        pairs = zip(one.seconds[-args.rounds :], ours.seconds[-args.rounds :], strict=True)
        shares[key] = statistics.median(a / b for a, b in pairs)
        difference = np.abs(one.result - ours.result).max()
        print(f"{key:<36} {args.count / each.median:>10.1f} {each.ratio:>15.2f} "
              f"{shares[key]:>13.2f} {difference:>11.1e}")  # fmt: skip
    others = [key for key in found if key != "jaxclip"]
    if others:
        clock, cpus = min(found[key].ratio for key in others), min(shares[key] for key in others)
        print(f"throughput of jaxclip embed / the fastest other's: {clock:.2f}; per CPU second: "
              f"{cpus:.2f}")  # fmt: skip


class OnCPUs:
    """A candidate that keeps what each call took on CPUs, and what the last one gave.

    Attributes:
      seconds: of each call, of this process and those that it started.
      result: of the last call.
    """

    def __init__(self, run: Callable[[], np.ndarray]):
        self.run, self.seconds = run, list[float]()
        self.result = np.zeros(0)

    def __call__(self) -> None:
        began = cpu_seconds(os.getpid())
        self.result = self.run()
        self.seconds.append(cpu_seconds(os.getpid()) - began)


def cpu_seconds(process: int) -> float:
    """What a process and those that it started have taken of CPUs so far; Linux alone has it all.

    Without ``/proc`` it is what this process has taken.
    """
    folder = pathlib.Path(f"/proc/{process}")
    try:
        # Behind the name, which may hold anything: the state is field 3, user time is field 14.
        numbers = (folder / "stat").read_text().rpartition(")")[2].split()[11:15]
        started = (
            number for task in (folder / "task").iterdir()
            for number in (task / "children").read_text().split()
        )  # fmt: skip
        children = sum(cpu_seconds(int(number)) for number in started)
    except OSError:  # it has ended, or this is no Linux
        return time.process_time() if process == os.getpid() else 0.0
    return sum(map(int, numbers)) / os.sysconf("SC_CLK_TCK") + children


def write_pictures(folder: pathlib.Path, count: int, side: int) -> None:
    """JPEG files of smooth random colours, of several shapes, as cameras make them."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        shape = (side, side * 3 // 4) if index % 3 else (side * 2 // 3, side)
        with io.BytesIO() as file:
            small.resize(shape, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            (folder / f"{index:05d}.jpg").write_bytes(file.getvalue())


def write_weights(folder: pathlib.Path, preset: str) -> list[str]:
    """Random weights of a preset, as folders that the libraries read; named after these.

    Returns:
      The libraries that can express it: open_clip computes another GELU in SigLIP B/16.
    """
    from jaxclip.models import presets
    from jaxclip.weights import export
    from jaxclip.weights.families import FAMILIES, Checkpoint

    sizes = presets.get(preset)
    params, written = random_parameters(sizes), []
    for library, form in (("open_clip", "open_clip"), ("transformers", "hf")):
        try:
            family = export.family_of(sizes, form)
            preprocess = FAMILIES.get(family).preprocess(Checkpoint("", {}), sizes)
            export.export_checkpoint(params, sizes, family, folder / library, preprocess)
            written.append(library)
        except ValueError as error:
            print(f"without {library}: {error}")
    return written


def random_parameters(sizes: Any) -> Any:
    """Parameters by NumPy, each as large as it begins: to compile their drawing takes longer."""
    import jax

    from jaxclip import models

    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> Any:
        name = str(path[-1].key)
        if not leaf.shape:
            return np.float32(sizes.logit_scale_init if name == "logit_scale" else 0.0)
        noise = rng.standard_normal(leaf.shape, np.float32)
        if name == "scale":
            return 1 + 0.1 * noise
        return noise * np.float32(leaf.shape[0] ** -0.5 if name == "kernel" else 0.02)

    shapes = jax.eval_shape(models.build(sizes).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def embedder(
    folder: pathlib.Path, weights: pathlib.Path, batch_size: int
) -> Callable[[], np.ndarray]:
    """``jaxclip embed`` on ``folder/pictures``: float32[N, D]."""
    import jaxclip
    from jaxclip.inference import embed
    from jaxclip.inference.pictures import open_pictures

    model = jaxclip.load(weights)

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=folder) as to:
            pictures = open_pictures(folder / "pictures")
            embed.embed_images(model, pictures, to, batch_size=batch_size)
            return embed.read_embeddings(to)[1]

    return run
