"""Subcommands that tell of a run beside training it: ``plan``, ``lab``, ``sharpness``.

Building the parsers imports nothing that is heavy.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxclip.cli_models import AddCommand

_LAB = """\
Run a grid of tiny training runs (rule x rate x injector x precision x model x seed) and report it.

  jaxclip lab --config configs/lab_rules.py --workdir runs/lab_rules
  jaxclip lab --config configs/lab_rules.py --cell rule=adamw,rate=0.004,injector=scale,seed=0

A cell is done once: stopped at any moment, the same command goes on with the next one.
configs/lab_*.py are examples; docs/stability_lab.md says what an injector is and what came out.
"""

_SHARPNESS = """\
Measure how sharp the minimum is that a run came to, and the way to another one.

  jaxclip sharpness --workdir runs/mine
  jaxclip sharpness --workdir runs/tuned --between runs/mine
  jaxclip sharpness --workdir runs/mine --landscape

The loss is the contrastive one of fixed batches, at the run's temperature. The folder (default:
sharpness/ in the workdir) gets sharpness.json, pictures and index.html. docs/stability.md says what
the numbers are.
"""


def add_plan(commands: Any, add: AddCommand, *, epilog: str) -> None:
    """Add ``jaxclip plan``; ``epilog`` says how a configuration is overridden."""
    parser = add(
        commands,
        "plan",
        _plan,
        "tell memory, time and communication of a training step before its chips are paid for",
        epilog=epilog,
    )
    parser.add_argument("--config", required=True, help="config file (path.py or path.py:arg)")
    parser.add_argument(
        "--topology", help="slice to plan for, such as v5e:16x16 (default: the devices at hand)"
    )
    parser.add_argument("--output", help="folder for plan.json and plan.html")
    parser.add_argument("--cache", help="folder that keeps compiled programs between calls")
    parser.add_argument(
        "--no_remedies",
        action="store_true",
        help="if it does not fit, do not try out which switch would make it fit",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="try meshes, remat and micro-batches; rank what fits"
    )
    parser.add_argument(
        "--sweep_remat",
        default="none,dots,mlp,full",
        help="remat policies of the sweep",
    )
    parser.add_argument(
        "--sweep_micro_batches", default="1,4", help="numbers of micro-batches of the sweep"
    )
    parser.add_argument(
        "--no_measure",
        action="store_true",
        help="on the devices at hand: do not run steps to check the model against the clock",
    )
    parser.set_defaults(takes_overrides="train")


def add_lab(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip lab``."""
    parser = add(
        commands,
        "lab",
        _lab,
        "run a grid of tiny runs in which things go wrong, and report which rule survives",
        description=_LAB,
    )
    # The options stand here and not in the room: `jaxclip --help` must not wait for jax.
    parser.add_argument("--config", required=True, help="config file (path.py or path.py:arg)")
    parser.add_argument("--workdir", help="folder for cells and report; goes on where it stopped")
    parser.add_argument(
        "--cell",
        metavar="AXIS=VALUE,…",
        help="run this cell alone and print its numbers; with --workdir they are compared with "
        "those that are there",
    )
    parser.add_argument(
        "--max_seconds", type=float, help="begin no cell after so many seconds, go on later"
    )
    parser.add_argument(
        "--list", action="store_true", help="print the cells, with + those that are done, and stop"
    )


def add_sharpness(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip sharpness``."""
    parser = add(
        commands,
        "sharpness",
        _sharpness,
        "measure how sharp the minimum of a run is, by layer and on the way to another one",
        description=_SHARPNESS,
    )
    parser.add_argument("--workdir", required=True, help="workdir of a run, or published weights")
    parser.add_argument("--between", help="another one of the same architecture")
    parser.add_argument(
        "--landscape",
        action="store_true",
        help="draw the loss on a line and on a plane; with --between on the line between both",
    )
    parser.add_argument("--split", default="", help="of the run's data (default: that of training)")
    parser.add_argument("--batches", type=int, default=4, help="number of fixed batches")
    parser.add_argument("--batch_size", type=int, default=128, help="pairs in each")
    parser.add_argument("--probes", type=int, default=10, help="random directions for the traces")
    parser.add_argument(
        "--places", type=int, default=25, help="of --landscape: points along a side of the plane"
    )
    parser.add_argument("--seed", type=int, default=0, help="of batches and directions")
    parser.add_argument("--to", help="folder of the results (default: sharpness/ in the workdir)")


def _plan(args: argparse.Namespace) -> int:
    from jaxclip import config as config_lib
    from jaxclip.plan import command

    config = config_lib.resolve(config_lib.load_file(args.config, "train"), args.overrides)
    return command.run(args, config)


def _lab(args: argparse.Namespace) -> int:
    from jaxclip.lab import command

    return command.run(args)


def _sharpness(args: argparse.Namespace) -> int:
    from jaxclip.lab import sharpness

    return sharpness.run(args)
