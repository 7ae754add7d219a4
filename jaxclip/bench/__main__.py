"""``python -m jaxclip.bench NAME [OPTIONS]``: finds the benchmark and hands it the options."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jaxclip.registry import hint

# Each is a module of this package with `main(arguments) -> exit status` and a docstring.
BENCHMARKS = {
    "data": "images a second that the input pipeline makes, against plain tf.data",
    "decode": "pictures a second of each image backend, against torchvision and webdataset",
    "curate": "records a second and core of each step of `jaxclip curate`",
    "optim": "cost of each transformation against plain optax.adamw",
    "step": "training step of a preset on the devices at hand, or against PyTorch",
    "accelerator": "all that matters of one GPU or TPU, in at most eight minutes",
    "loss": "blockwise contrastive losses against the plain ones: time and memory",
    "memory": "memory of the process over a long run of the real loop",
    "watch": "what the watch and the policies against spikes add to a step",
    "mup": "whether learning rates carry over from narrow to wide models",
    "methods": "training methods on the built-in data, at equal pictures and equal time",
    "weights": "memory that opening published weights takes, at full size",
    "embed": "pictures a second of `jaxclip embed`, against open_clip's own loop",
    "mesh": "training step on every mesh of the devices at hand",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns its exit status, 2 for an unknown name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m jaxclip.bench NAME [OPTIONS]   (NAME --help: its options)\n")
        for known, what in BENCHMARKS.items():
            print(f"  {known:<11} {what}")
        return 0
    if name not in BENCHMARKS:
        near = hint(name, BENCHMARKS)
        print(f"jaxclip.bench: error: no benchmark {name!r}{near}", file=sys.stderr)
        return 2
    return importlib.import_module(f"jaxclip.bench.{name}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
