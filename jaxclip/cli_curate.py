"""Subcommand ``curate``. Building the parser imports nothing that is heavy."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxclip.cli_models import AddCommand
from jaxclip.registry import hint

if TYPE_CHECKING:
    from jaxclip.curate.runners import Runner

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
    parser.set_defaults(takes_overrides="curate")


def _run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status.

    Raises:
      ValueError, FileNotFoundError: a mistake in what was asked.
      ImportError: Beam or another library is not installed; says which extra has it.
    """
    from jaxclip.curate import job, report, writers

    config = _config(args)
    if not args.workdir:
        raise ValueError("--workdir is missing: name a folder for what is found and the report")
    writers.WRITERS.get(args.format or "tfds")
    if args.to:
        writers.check_target(args.to)
    if args.format and not args.to:
        raise ValueError(f"--format {args.format} needs --to: name a folder for the kept records")
    try:
        with _runner(args) as runner:
            outcome = job.curate(config, args.workdir, runner=runner, break_lock=args.break_lock)
            print("\n".join(report.lines(outcome.report)))
            print(f"{args.workdir}: kept/, dropped/, report.html")
            if args.to:
                print(writers.write(outcome, args.to, args.format or "tfds", runner=runner))
    except KeyboardInterrupt:
        print("jaxclip: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def parse_step(text: str) -> dict[str, Any]:
    """A step of a command line: ``"captions min_words=3 alt_text=True"``.

    Raises:
      ValueError: not of this form.
    """
    from jaxclip.config import parse_override

    try:
        name, *options = shlex.split(text) or [""]
        if not name:
            raise ValueError("it names no step")
        return {"name": name, **dict(map(parse_override, options))}
    except ValueError as error:
        raise ValueError(
            f"--step {text!r} is not of the form 'captions min_words=3': {error}"
        ) from error


def _config(args: argparse.Namespace) -> dict[str, Any]:
    from jaxclip.config import parse_override
    from jaxclip.config_file import load_file

    config = load_file(args.config, "curate") if args.config else {}
    if args.pool:
        config["source"] = args.pool
    if args.split:
        config["split"] = args.split
    if args.step:
        config["steps"] = [parse_step(text) for text in args.step]
    if not config.get("steps"):
        raise ValueError("no steps: name a --config, or give --step 'captions min_words=3' …")
    for key, value in map(parse_override, args.overrides):
        _override(config, key, value)
    return config


def _override(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of the configuration, or ``STEP.OPTION``: an option of all steps of a name."""
    name, dot, option = key.partition(".")
    if not dot:
        config[key] = value
        return
    steps = [{"name": step} if isinstance(step, str) else step for step in config["steps"]]
    names = [str(step.get("name")) for step in steps]
    if name not in names:
        raise ValueError(f"--config.{key}: there is no step {name!r}{hint(name, set(names))}")
    config["steps"] = [{**s, option: value} if s.get("name") == name else s for s in steps]


@contextlib.contextmanager
def _runner(args: argparse.Namespace) -> Iterator[Runner]:
    from jaxclip.curate.runners import RUNNERS

    if args.runner not in RUNNERS.names():
        raise ValueError(
            f"--runner {args.runner!r}{hint(args.runner, RUNNERS.names())}; a runner of Beam's "
            "goes behind it: --runner beam -- --runner=DataflowRunner …"
        )
    if args.beam_options and args.runner != "beam":
        raise ValueError(f"{' '.join(args.beam_options)}: options of Beam need --runner beam")
    options = args.beam_options if args.runner == "beam" else args.workers
    runner = RUNNERS.get(args.runner)(options)
    try:
        yield runner
    finally:
        runner.close()
