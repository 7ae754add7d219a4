"""What ``jaxclip plan`` does with its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from etils import epath

from jaxclip import storage
from jaxclip.config import Config
from jaxclip.plan import measure, planner, report, topology
from jaxclip.plan.planner import Change, Plan
from jaxclip.plan.program import Cache


def run(args: argparse.Namespace, config: Config) -> int:
    """Plan, print and save; returns the exit status, 1 if the step does not fit."""
    if args.output and (problem := storage.probe(epath.Path(args.output))):
        raise ValueError(f"--output: {problem}")
    counts = [_count(n) for n in args.sweep_micro_batches.split(",")]
    if args.topology:
        place = topology.get(args.topology)
    else:
        place = measure.at_hand(config["precision"]["compute_dtype"])
    cache = Cache(args.cache)

    def plan_of(changed: Config) -> Plan:
        return planner.make_plan(changed, place, cache=cache)

    if args.sweep:
        remats = args.sweep_remat.split(",")
        changes = list(planner.sweep_changes(len(place.devices), remats, counts))
        return _sweep(args, config, changes, plan_of)
    plan = plan_of(config)
    print(report.text(plan))
    notes = []
    if not plan.fits and not args.no_remedies:
        notes.append(_remedy(config, plan_of))
    if plan.fits and not args.topology and not args.no_measure:
        notes.append(describe_check(measure.check(config, plan)))
    for note in notes:
        print(note)
    if args.output:
        for path in report.write(args.output, plan, notes):
            print(f"wrote {path}")
    return 0 if plan.fits else 1


def describe_check(check: measure.Check) -> str:
    """One sentence about how far off the model was."""
    span = f"{report.milliseconds(check.best)} to {report.milliseconds(check.worst)} ms"
    measured = f"measured {report.milliseconds(check.seconds)} ms a step; the model says {span}"
    if check.off == 1.0:
        return f"{measured}: inside."
    side = "slower than its slow" if check.off > 1 else "faster than its fast"
    return f"{measured}: {max(check.off, 1 / check.off):.2f} times {side} end."


def _remedy(config: Config, plan_of: Callable[[Config], Plan]) -> str:
    change = planner.remedies(config, plan_of, on_try=_print_try)
    if change is None:
        return "It does not fit, and no switch makes it fit; use a larger slice or a smaller batch."
    return f"It does not fit as it is, but with {_words(change)}."


def _sweep(
    args: argparse.Namespace,
    config: Config,
    changes: list[Change],
    plan_of: Callable[[Config], Plan],
) -> int:
    ranked = planner.sweep(config, changes, plan_of, on_try=_print_try)
    if not ranked:
        print("nothing fits")
        return 1
    print("\n".join(report.aligned(report.sweep_rows(ranked))))
    print(report.RANKED)
    if args.output:
        for path in report.write_sweep(args.output, ranked):
            print(f"wrote {path}")
    return 0


def _count(text: str) -> int:
    if not text.strip().isdigit() or not int(text):
        raise ValueError(f"--sweep_micro_batches: {text!r} is no number of micro-batches; use 1,4")
    return int(text)


def _print_try(change: Change, plan: Plan | ValueError) -> None:
    if isinstance(plan, ValueError):
        answer = f"can't be built: {plan}"
    elif plan.refusal is not None:
        answer = "refused"
    else:
        assert plan.memory is not None
        answer = f"{'fits' if plan.fits else 'too large'}, {plan.memory.peak / 2**30:.2f} GiB"
    print(f"  tried {_words(change)}: {answer}", flush=True)


def _words(change: Change) -> str:
    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ",".join(f"{key}:{size}" for key, size in item.items()) + "}"
        return str(item)

    return ", ".join(f"{key}={value(item)}" for key, item in change.items())
