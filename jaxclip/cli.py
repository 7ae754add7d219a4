"""The ``jaxclip`` command: thin; every subcommand calls one function of the library."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jaxclip import interrupts, standard_streams
from jaxclip.cli_parser import Parser, at_least, take_overrides

_TRAIN = """\
Train a model, or go on training it.

  jaxclip train --config configs/emoji.py --workdir runs/emoji
  jaxclip train --workdir runs/emoji              # go on with the configuration it was started with
  jaxclip train --workdir runs/emoji --extend --config.total_steps=4000

The workdir gets checkpoints, config.json, metrics.jsonl, TensorBoard events, eval.json and
report.html. Ctrl-C, SIGTERM and SIGHUP end the run after the step in flight with a checkpoint; the
same command again goes on from the newest one, to the same parameters as if it had never stopped.
Only how a run is carried out (mesh, checkpoint.*, evaluate.*, log_every_steps, …) may differ then;
with --extend also total_steps, optim.* and a few more, and config_history.json notes what changed
when.

A workdir serves one run at a time: its lock.json names host and process. A run that died does not
keep it, except on another host for a minute.
"""

_EVAL = """\
Evaluate a checkpoint of a workdir, by what its configuration asks for or by other tasks.

  jaxclip eval --workdir runs/emoji
  jaxclip eval --workdir runs/emoji --task 'zero_shot data=emoji split=test_style'

The results are printed and go to eval.json in the workdir; docs/evaluation.md has the tasks.
"""

_OVERRIDES = """\
Any configuration key can be overridden on the command line:

  --config.optim.learning_rate=3e-4  --config.model.image.width=256
  --config.evaluate.zero_shot='["test_style"]'

Values are Python literals; anything else is taken as a string. `jaxclip train --print_config` shows
every key.
"""


# A wrong request, not a bug: a page of traceback would only hide what is wrong.
_MISTAKES = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError)
# What JAX calls errors of a device, out of memory among them.
_DEVICE = ("JaxRuntimeError", "XlaRuntimeError")


# Bytes of compiled programs that are kept in a folder.
_LARGEST_CACHE = 20 * 2**30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a mistake in what was asked)."""
    standard_streams.keep_open()
    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments, overrides = take_overrides(arguments)
    parser = build_parser()
    args = parser.parse_args(arguments)
    if overrides and not getattr(args, "takes_overrides", ""):
        parser.error(f"`jaxclip {args.command}` takes no --config.* overrides")
    args.overrides = overrides
    _quiet()
    try:
        with interrupts.interruptible_while_loading():
            _complete_paths(args)
            return args.run(args)
    except BaseException as error:
        from jaxclip.errors import UploadInterrupt

        joined = _joined()
        lost = joined.explain_loss(error) if joined else ""
        status = _explain(error, args.command, lost)
        # Python's own exit waits for other processes, and for threads that wait for a store.
        if joined or isinstance(error, UploadInterrupt):
            if status is None:
                traceback.print_exc()
            from jaxclip.parallel import distributed

            distributed.leave(status or 1)
        if status is None:
            raise
        return status


def _complete_paths(args: argparse.Namespace) -> None:
    """Take every path option from the current folder, and fill in ``~`` as in ``--workdir=~/run``.

    A config file keeps its relative name, which is the shorter one in messages.
    """
    from jaxclip import config as config_lib
    from jaxclip import storage

    for name in ("workdir", "output", "cache", "source", "to", "tokenizer", "between"):
        if getattr(args, name, None):
            storage.check_address(getattr(args, name))
            setattr(args, name, storage.absolute(getattr(args, name)))
    if args.command == "lab" and getattr(args, "workdir", None):
        storage.check_workdir(args.workdir)
    if getattr(args, "config", None):
        args.config = os.path.expanduser(args.config)
    if args.command == "data" and args.action == "info":
        storage.check_address(args.name)
        args.name = config_lib.absolute_data_name(args.name)


def _joined() -> Any:
    """The module that joined this process to others; None for a process on its own."""
    module = sys.modules.get("jaxclip.parallel.distributed")
    return module if module is not None and module.is_distributed() else None


def _explain(error: BaseException, command: str, lost: str) -> int | None:
    """Say what went wrong in one line; returns the exit status, None where a traceback is due."""
    if os.environ.get("JAXCLIP_TRACEBACK"):
        return None
    from jaxclip.errors import RunError, explain_file, explain_no_device

    checks = sys.modules.get("jaxclip.train.checks")
    memory = checks.explain_memory(error) if checks and type(error).__name__ in _DEVICE else ""
    status = 2
    if lost:
        message, status = lost, 1
    elif fault := memory or explain_no_device(error):
        message, status = fault, 1
    elif isinstance(error, KeyboardInterrupt) and not str(error):
        print("jaxclip: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    elif isinstance(error, KeyboardInterrupt):
        message, status = str(error), 128 + signal.SIGINT
    elif isinstance(error, BrokenPipeError):
        # Whoever read our output (`| head`) has had enough. What is buffered has nowhere to go.
        standard_streams.silence(sys.stdout)
        return 128 + signal.SIGPIPE
    elif isinstance(error, _MISTAKES):
        message = explain_file(error) or str(error)
    elif isinstance(error, (RunError, OSError)):
        message, status = standard_streams.explain(error) or explain_file(error) or str(error), 1
    elif isinstance(error, ImportError) and "pip install" in str(error):
        message = str(error)  # ours: says what is needed for what
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("jaxclip"):
        message = (
            f"{error}; `jaxclip {command}` needs an extra, in a clone of jaxclip: "
            "pip install '.[train]'"
        )
    else:
        return None
    print(f"jaxclip: error: {message}", file=sys.stderr)
    return status


def build_parser() -> argparse.ArgumentParser:
    """The argument parser with all subcommands."""
    from jaxclip import __version__

    parser = Parser(
        prog="jaxclip",
        description="Train, adapt and evaluate CLIP models that do not blow up.",
    )
    parser.add_argument("--version", action="version", version=f"jaxclip {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_eval(commands)
    from jaxclip import cli_curate, cli_data, cli_methods, cli_models, cli_plan

    cli_data.add_data(commands, _command)
    cli_curate.add_curate(commands, _command)
    _add_report(commands)
    cli_plan.add_plan(commands, _command, epilog=_OVERRIDES)
    cli_plan.add_lab(commands, _command)
    cli_plan.add_sharpness(commands, _command)
    cli_models.add_weights(commands, _command)
    cli_models.add_use(commands, _command)
    cli_methods.add_methods(commands, _command)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, **kwargs: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=kwargs.pop("description", help[0].upper() + help[1:] + "."),
        **kwargs,
    )
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "train a model, or go on training it",
        description=_TRAIN,
        epilog=_OVERRIDES,
    )
    parser.add_argument(
        "--config", help="config file (path.py or path.py:arg); default: the workdir's own"
    )
    parser.add_argument(
        "--workdir", help="folder, or gs://… or s3://…, for checkpoints, metrics and the report"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="build everything, compile, do one step on made-up data, print shapes and memory",
    )
    parser.add_argument(
        "--dry_run_batch_size",
        type=at_least(1),
        default=None,
        help="global batch of the dry run (default: 8 a device, at most the configured one)",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved configuration and stop"
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on with the run in the workdir with other values of total_steps, optim.*, …",
    )
    parser.add_argument(
        "--break_lock",
        action="store_true",
        help="take the workdir from a run elsewhere that is gone for good",
    )
    _add_distributed(parser)
    parser.set_defaults(takes_overrides="train")


def _add_distributed(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several hosts (default: found in the environment)")
    group.add_argument("--coordinator_address", help="host:port of process 0")
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="which of them this one is, from 0")


def _add_eval(commands: Any) -> None:
    about = "evaluate a checkpoint of a workdir"
    parser = _command(commands, "eval", _eval, about, description=_EVAL)
    parser.add_argument("--workdir", required=True, help="workdir of a run, or its address")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="'NAME key=value …'",
        help="evaluate this in place of what the run's configuration asks for, such as "
        "'zero_shot data=DIR split=test templates=imagenet_80'; may be given several times",
    )
    parser.epilog = _OVERRIDES
    _add_distributed(parser)
    parser.set_defaults(takes_overrides="train")


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", _report, "write report.html of a workdir anew")
    parser.add_argument("--workdir", required=True, help="workdir of a run, or its address")


def _train(args: argparse.Namespace) -> int:
    from jaxclip import config as config_lib

    config = _config_of(args)
    if args.print_config:
        import json

        from jaxclip.train import checks

        checks.check_names(config)
        for line in config_lib.unused(config):
            logging.getLogger("jaxclip").warning("%s", line)
        print(json.dumps(config, indent=2))
        return 0
    from jaxclip.train import allocator

    if allocator.runs_on_cpu():
        allocator.keep_freed_memory()
    _join_others(args, config)
    if config["compilation_cache_dir"]:
        import jax

        from jaxclip import storage

        storage.make_cache("compilation_cache_dir", config["compilation_cache_dir"])
        jax.config.update("jax_compilation_cache_dir", config["compilation_cache_dir"])
        # With a limit JAX locks the folder: without, a run may read what another is still writing,
        # and a program cut in two ends the process.
        jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
    if args.dry_run:
        from jaxclip.train import dry_run

        dry_run.dry_run(config, batch_size=args.dry_run_batch_size)
        return 0
    if not args.workdir:
        raise ValueError("--workdir is missing: name a folder for checkpoints and the report")
    from jaxclip.train import loop

    for key, value in config_lib.flatten(config):
        logging.getLogger("jaxclip").debug("%s = %r", key, value)
    result = loop.train(config, args.workdir, extend=args.extend, break_lock=args.break_lock)
    if result.signal in (signal.SIGINT, signal.SIGPIPE):
        return 128 + result.signal
    # A checkpoint is written and all is well, but several processes have a launcher, which must
    # know those that were stopped (perhaps for the sake of another host) from those that finished.
    return 128 + signal.SIGTERM if result.signal and _joined() else 0


def _join_others(args: argparse.Namespace, config: dict[str, Any]) -> None:
    from jaxclip import parallel

    parallel.initialize_distributed(
        coordinator_address=args.coordinator_address,
        num_processes=args.num_processes,
        process_id=args.process_id,
        **config["distributed"],
    )


def _config_of(args: argparse.Namespace) -> dict[str, Any]:
    from jaxclip import config as config_lib
    from jaxclip.train import workdir_config

    if args.config:
        return config_lib.resolve(config_lib.load_file(args.config, "train"), args.overrides)
    if args.workdir:
        known = workdir_config.find_config(args.workdir)
        if known is not None:
            return workdir_config.complete(known, args.workdir, args.overrides)
    raise ValueError(
        "--config is missing: name a config file, or the --workdir of a run to go on with"
        + (f"; {args.workdir} holds none" if args.workdir else "")
    )


def _eval(args: argparse.Namespace) -> int:
    from jaxclip.train import evaluation, workdir_config

    found = workdir_config.read_config(args.workdir)
    config = workdir_config.complete(found, args.workdir, args.overrides)
    _join_others(args, config)
    evaluation.evaluate_workdir(
        args.workdir,
        step=args.step,
        overrides=args.overrides,
        tasks=[evaluation.parse_task(text) for text in args.task],
    )
    return 0


def _report(args: argparse.Namespace) -> int:
    from jaxclip.train import report, workdir_config

    try:
        print(report.write_report_at(args.workdir))
    except (KeyError, TypeError, AttributeError, IndexError):
        # A configuration of another version is drawn as far as it goes; here it did not.
        workdir_config.complete(workdir_config.read_config(args.workdir), args.workdir)
        raise
    return 0


def _quiet() -> None:
    """Our own messages and warnings, none of the libraries' chatter."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "2")
    # TensorFlow only reads and decodes here; with this it has nothing to announce.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("jaxclip").setLevel(logging.INFO)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home that can't be written


if __name__ == "__main__":
    sys.exit(main())
