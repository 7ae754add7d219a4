"""A curation from its configuration to its report; what was done before is not done again."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from jaxclip import storage
from jaxclip.curate import config as config_lib
from jaxclip.curate import report, source, store, tables
from jaxclip.curate.done import Done
from jaxclip.curate.flow import Flow
from jaxclip.curate.runners import Runner
from jaxclip.curate.runners.local import Local
from jaxclip.curate.step import Step
from jaxclip.curate.store import VERDICT, View
from jaxclip.data.bucket import Bucket, LockFile
from jaxclip.lock import FILE_NAME, Lock

STORE_DIR = "store"
REPORT_FILE = "report.json"


class Outcome(NamedTuple):
    """What came of a curation.

    Attributes:
      records: of the split.
      kept: those that are left.
      report: as in ``report.json``.
      view: the records that are left.
    """

    records: int
    kept: int
    report: dict[str, Any]
    view: View


def curate(
    config: Mapping[str, Any],
    workdir: str | os.PathLike[str],
    *,
    runner: Runner | None = None,
    break_lock: bool = False,
) -> Outcome:
    """Carry out a curation.

    The folder gets ``store/`` (what the passes found), ``kept/`` and ``dropped/`` (Parquet, a file
    a shard), ``report.json`` and ``report.html``. Called again after a kill it goes on; called with
    other steps it takes from the store whatever is the same.

    Args:
      config: see :data:`jaxclip.curate.config.DEFAULTS`.
      workdir: the folder.
      runner: what carries out the passes; None: this process alone.
      break_lock: take the folder from a run that may be alive.

    Raises:
      ValueError, FileNotFoundError: a mistake in the configuration, or a folder in use.
    """
    config = config_lib.resolve(config)
    steps = config_lib.build_steps(config)
    data_set = source.open(config["source"])
    split = config["split"] or source.default_split(data_set)
    data_set.source(split)  # refuses what is not there
    place = storage.absolute(workdir)
    source.check_outside(config["source"], place)
    runner = runner or Local(1)
    if isinstance(runner, Local) and not storage.is_local(place):
        raise ValueError(f"{place}: a workdir in a bucket needs --runner beam")
    with _locked(place, break_lock):
        view = read(config, split, data_set.splits[split], place, runner)
        done = run_steps(config, steps, view, f"{place}/{STORE_DIR}", runner)
        return _conclude(config, split, view, done, place, runner)


def read(config: Mapping[str, Any], split: str, count: int, place: str, runner: Runner) -> View:
    """The first pass: every record once."""
    bounds = (*range(0, count, config["shard_size"]), count)
    identity = [source.stamp(config["source"]), split, list(bounds)]
    base = f"{place}/{STORE_DIR}/00_read-{config_lib.digest(identity)}"
    task = functools.partial(store.write_base, base, config["source"], split, bounds)
    todo = store.missing(f"{base}/{VERDICT}", range(len(bounds) - 1))
    runner.each(task, todo)
    return View(config["source"], split, bounds, base)


def run_steps(
    config: Mapping[str, Any], steps: list[Step], view: View, place: str, runner: Runner
) -> list[Done]:
    """Carry out steps; ``place`` is the folder of their passes."""
    done: list[Done] = []
    shared: dict[str, Any] = {}
    identity = config_lib.digest([view.base, config["seed"]])
    for number, step in enumerate(steps, 1):
        identity = config_lib.digest([identity, step.identity()])
        label = f"{number:02d}_{step.name}"
        folder = f"{place}/{label}-{identity}"
        flow = Flow(view, folder, runner, seed=config["seed"], label=label, shared=shared)
        step.run(flow)
        done.append(Done(label, folder, step, view, flow.view, flow.notes))
        view = flow.view
    return done


def _conclude(
    config: Mapping[str, Any],
    split: str,
    start: View,
    done: list[Done],
    place: str,
    runner: Runner,
) -> Outcome:
    """Tables and report; ``report.json`` comes last and vouches for the rest."""
    end = done[-1].after if done else start
    folder = epath.Path(place)
    (folder / REPORT_FILE).unlink(missing_ok=True)
    identity = config_lib.digest([end.verdict, end.base, *end.passes])
    tables.write(place, identity, start, done, runner)
    content = report.collect(config, split, start, done, f"{place}/{STORE_DIR}", identity, runner)
    storage.write_text(folder / "report.html", report.page(content, start))
    content.pop("examples")
    storage.write_text(folder / REPORT_FILE, json.dumps(content, indent=1) + "\n")
    storage.write_json(folder / "config.json", dict(config))
    return Outcome(content["records"], content["kept"], content, end)


@contextlib.contextmanager
def _locked(place: str, break_lock: bool) -> Iterator[None]:
    """Hold the folder, or the address."""
    problem = storage.probe(epath.Path(place))
    if problem:
        raise ValueError(problem)
    at: str | LockFile = place if storage.is_local(place) else LockFile(Bucket(place), FILE_NAME)
    lock = Lock(at, force=break_lock)
    try:
        yield
    finally:
        lock.release()
