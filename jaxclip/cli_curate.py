"""Subcommand ``curate``. Building the parser imports nothing that is heavy."""

from __future__ import annotations

import argparse
from typing import Any

from jaxclip.cli_models import AddCommand

_CURATE = """\
Choose which image-text pairs to train on.

  jaxclip curate --config configs/curate.py:metaclip --source data/pool --workdir runs/curate
  jaxclip curate --source 'webdataset:/data/{000..099}.tar' --workdir runs/curate \\
      --step 'captions min_words=3' --step exact_duplicates --to data/chosen --format tfds
  jaxclip curate --config configs/curate.py --workdir gs://bucket/curate --runner beam \\
      -- --runner=DataflowRunner --project=… --region=… --temp_location=…

Every step works on what the steps before left; docs/curation.md has them all. The workdir gets
kept/ and dropped/ (Parquet: keys, reasons, scores, weights), report.html and report.json. The
source is only read. Stopped at any time, the same command goes on; with other steps it does again
only what comes behind the first change.
"""


def add_curate(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip curate``."""
    parser = add(
        commands, "curate", _run, "choose which image-text pairs to train on", description=_CURATE
    )
    parser.add_argument("--config", help="config file (path.py or path.py:arg)")
    parser.add_argument(
        "--source",
        dest="pool",
        metavar="DATA",
        help="data set, or folder of pictures (default: the config's)",
    )
    parser.add_argument("--split", default="", help="default: train, or the only one")
    parser.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="'NAME key=value …'",
        help="a step, in place of the config's; may be given several times",
    )
    parser.add_argument("--workdir", help="folder for what is found and the report")
    parser.add_argument("--to", help="new folder for the kept records")
    parser.add_argument("--format", default="", help="of --to: tfds (default), webdataset, parquet")
    parser.add_argument("--runner", default="local", help="local (default) or beam")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes of the local runner (default: all CPUs)"
    )
    parser.add_argument(
        "--break_lock",
        action="store_true",
        help="take the workdir from a run elsewhere that is gone for good",
    )
    parser.add_argument("beam_options", nargs="*", metavar="-- OPTIONS", help="of Apache Beam")
    parser.set_defaults(takes_overrides=True)


def _run(args: argparse.Namespace) -> int:
    from jaxclip.curate import command

    return command.run(args)
