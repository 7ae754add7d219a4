"""Memory of the process over a long run of the real loop: data, metrics, checkpoints and all.

    python -m jaxclip.bench memory --steps 2000

A small model trains on the built-in data set, with a checkpoint now and then. Printed is the memory
of the process at some steps (its own, without mapped files), and how much it grows from the second
quarter of the run (by then caches are full and everything is compiled) to its end.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxclip import config as config_lib

_TOWER = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}
CONFIG: dict[str, Any] = {
    "global_batch_size": 32,
    "data": {"name": "emoji", "image_ops": "flip"},
    "tokenizer": {"context_length": 16},
    "model": {"image": _TOWER, "text": _TOWER, "embed_dim": 32},
    "optim": {"clip": {"name": "zclip"}, "schedule": {"warmup_steps": 10}},
    "ema_decay": 0.99,
    "log_every_steps": 10,
}


class Sample(NamedTuple):
    """Memory of the process at a step.

    Attributes:
      step: updates done.
      mib: its own memory, MiB.
    """

    step: int
    mib: float


def measure(workdir: pathlib.Path, steps: int, config: dict[str, Any] = CONFIG) -> list[Sample]:
    """Train and look at the memory of this process at every line of metrics.

    Args:
      workdir: folder of the run.
      steps: how many to train.
      config: partial configuration.

    Returns:
      A sample for each step.
    """
    from jaxclip.train import loop, metrics

    samples: list[Sample] = []
    write = metrics.MetricWriter.write

    def noting(self: metrics.MetricWriter, step: int, values: Any) -> None:
        write(self, step, values)
        if not samples or samples[-1].step != step:
            samples.append(Sample(step, own_mib()))

    every = max(1, steps // 8)
    overrides = [f"total_steps={steps}", f"checkpoint.every_steps={every}"]
    metrics.MetricWriter.write = noting  # type: ignore[method-assign]
    try:
        loop.train(config_lib.resolve(config, overrides), workdir)
    finally:
        metrics.MetricWriter.write = write  # type: ignore[method-assign]
    return samples


def growth(samples: Sequence[Sample]) -> float:
    """MiB by which the last tenth of a run lies above the second quarter, medians of each."""
    values = np.array([sample.mib for sample in samples])
    count = len(values)
    return float(
        np.median(values[-max(1, count // 10) :]) - np.median(values[count // 4 : count // 2])
    )


def own_mib() -> float:
    """Memory of this process, resident or swapped out, without files it has mapped, MiB (Linux).

    Pages of files (libraries, above all) come and go as the system likes.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 2**10


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        parser.error("memory is read from /proc, which this system lacks")
    from jaxclip.train import allocator

    allocator.keep_freed_memory()  # as `jaxclip train` does on CPUs
    with tempfile.TemporaryDirectory() as folder:
        samples = measure(pathlib.Path(folder), args.steps)
    print(f"\n{'step':>6}  {'MiB':>8}")
    for part in range(1, 9):
        sample = samples[len(samples) * part // 8 - 1]
        print(f"{sample.step:>6}  {sample.mib:>8.1f}")
    print(f"threads: {threading.active_count()}")
    print(f"growth from the second quarter to the last tenth: {growth(samples):+.1f} MiB")
    return 0
