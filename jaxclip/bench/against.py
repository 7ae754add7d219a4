"""Training and imports of this tree against those of another checkout, in turns.

    git worktree add ../before COMMIT
    python -m jaxclip.bench against --tree ../before --config configs/emoji.py

Each turn is a run of ``jaxclip train`` in a process and a folder of its own, with the configuration
file of its own tree; ``--ours KEY=VALUE`` sets a key of this tree alone, where the other does not
know it. Told are pictures a second (medians of what the runs log), the CPU time of the whole run,
start and compilation included, that of importing ``optim``, ``losses`` and ``models`` after jax,
optax and flax, and the loss of the last step, which shows whether both compute the same.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from jaxclip.markdown import table

_HERE = pathlib.Path(__file__).resolve().parents[2]
_IMPORTS = """
import time, jax, optax, numpy, flax.linen
began = time.process_time()
import jaxclip.optim, jaxclip.losses, jaxclip.models
print(time.process_time() - began)
"""


class Turn(NamedTuple):
    """What one run of a tree showed; times in seconds."""

    images_per_second: float
    cpu: float
    imports: float
    loss: float


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m jaxclip.bench against", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tree", type=pathlib.Path, required=True, help="the other checkout")
    parser.add_argument("--config", default="configs/emoji.py", help="within each tree")
    parser.add_argument("--ours", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    # Its own jaxclip would be taken from here if it had none.
    if not (args.tree / "jaxclip" / "__init__.py").is_file():
        print(f"jaxclip.bench: error: {args.tree} is no checkout of jaxclip", file=sys.stderr)
        return 2
    trees = {"the other": (args.tree.resolve(), []), "this": (_HERE, args.ours)}
    turns: dict[str, list[Turn]] = {name: [] for name in trees}
    for _ in range(args.rounds):
        for name, (tree, overrides) in trees.items():
            turns[name].append(_turn(tree, args.config, args.steps, overrides))
    rows = [["tree", "images/s", "ratio", "CPU s of the run", "CPU ms of imports", "last loss"]]
    base = statistics.median(turn.images_per_second for turn in turns["the other"])
    for name, each in turns.items():
        speed, cpu, imports = (
            statistics.median(getattr(turn, field) for turn in each)
            for field in ("images_per_second", "cpu", "imports")
        )
        losses = ", ".join(sorted({repr(turn.loss) for turn in each}))
        row = [f"{speed:.0f}", f"{speed / base:.3f}", f"{cpu:.1f}", f"{1e3 * imports:.0f}", losses]
        rows.append([name, *row])
    print(table(rows))
    return 0


def _turn(tree: pathlib.Path, config: str, steps: int, overrides: Sequence[str]) -> Turn:
    environment = {**os.environ, "PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = subprocess.run(
        [sys.executable, "-c", _IMPORTS], env=environment, check=True, capture_output=True
    )
    quiet = ["evaluate.every_steps=0", "evaluate.zero_shot=[]", "evaluate.retrieval=[]"]
    quiet += ["evaluate.gallery_split=", "checkpoint.best_metric=", f"total_steps={steps}"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxclip", "train", "--config", str(tree / config)]
        command += ["--workdir", f"{folder}/run"]
        command += [f"--config.{each}" for each in (*quiet, *overrides)]
        before = _children()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        cpu = _children() - before
        lines = pathlib.Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    speeds = [each["images_per_second"] for each in records if "images_per_second" in each]
    losses = [each["loss"] for each in records if "loss" in each]
    # The first one has the compilation in it.
    return Turn(statistics.median(speeds[1:] or speeds), cpu, float(found.stdout), losses[-1])


def _children() -> float:
    """CPU seconds of the processes that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
