"""``jaxclip curate``: its options, and how they are carried out."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from jaxclip import config as config_lib
from jaxclip import config_file, storage
from jaxclip.curate import job, report
from jaxclip.curate.runners import RUNNERS, Runner
from jaxclip.registry import hint


def run(args: argparse.Namespace) -> int:
    """Carry it out; returns the exit status.

    Raises:
      ValueError, FileNotFoundError: a mistake in what was asked.
      ImportError: Beam or another library is not installed; says which extra has it.
    """
    config = _config(args)
    if not args.workdir:
        raise ValueError("--workdir is missing: name a folder for what is found and the report")
    from jaxclip.curate import writers

    writers.WRITERS.get(args.format or "tfds")
    if args.to and not storage.is_local(args.to):
        raise ValueError(f"--to {args.to}: name a folder on this machine's disks; mount the bucket")
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
    try:
        name, *options = shlex.split(text)
        return {"name": name, **dict(config_lib.parse_override(option) for option in options)}
    except ValueError as error:
        raise ValueError(
            f"--step {text!r} is not of the form 'captions min_words=3': {error}"
        ) from error


def _config(args: argparse.Namespace) -> dict[str, Any]:
    config = config_file.load_file(args.config) if args.config else {}
    if args.pool:
        config["source"] = args.pool
    if args.split:
        config["split"] = args.split
    if args.step:
        config["steps"] = [parse_step(text) for text in args.step]
    if not config.get("steps"):
        raise ValueError("no steps: name a --config, or give --step 'captions min_words=3' …")
    for key, value in map(config_lib.parse_override, args.overrides):
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
