"""Runs the cells of a grid: what is done is not done again, what is interrupted goes on."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxclip import lock, storage
from jaxclip.lab import cells as cells_lib
from jaxclip.lab import config as config_lib
from jaxclip.lab import data, injectors, program
from jaxclip.lab.config import Cell, Config


class Outcome(NamedTuple):
    """How far a grid has come.

    Attributes:
      done: cells that are there.
      total: cells of the grid.
      ran: of the done ones, those that this call made.
    """

    done: int
    total: int
    ran: int


class Lab:
    """Runs single cells of a configuration; programs and data are made when they are needed."""

    def __init__(self, config: Config):
        """
        Args:
          config: resolved (:func:`jaxclip.lab.config.resolve`).
        """
        self.config = config
        self._data: dict[str, data.Pairs] | None = None
        self._program: tuple[tuple[str, str, str], program.Program] | None = None
        self._shared: dict[tuple[str, str], program.Shared] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def run(self, cell: Cell) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Run a cell.

        Returns:
          Its curves, and what else is to be known of it.

        Raises:
          ValueError: a plan that does not fit the run, or a rule that can't be built.
        """
        own = self._program_of(cell)
        plan = self.plan(cell, own.names)
        rows = injectors.extend(plan, self._place(cell, own.names), own.spare)
        began, cpu = time.perf_counter(), time.process_time()
        curves = own.run(cell.rate, cell.seed, rows)
        about = {
            "cell": cell._asdict(),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        return {**curves, "active": plan.active}, about

    def check(self, cells: Iterable[Cell]) -> None:
        """Make every plan that cells follow, so that none is refused when others have run.

        Raises:
          ValueError: a step that is not in the run, or a path that matches no parameter.
        """
        for model, injector in dict.fromkeys((cell.model, cell.injector) for cell in cells):
            training = config_lib.training(self.config, model, self.config["baseline"])
            if model not in self._names:
                self._names[model] = program.parameter_names(training)
            cell = Cell(model, "", "", 0.0, injector, 0)
            self.plan(cell, self._names[model])

    def plan(self, cell: Cell, names: tuple[str, ...]) -> injectors.Plan:
        """What a cell's run follows."""
        section = self.config["injectors"][cell.injector]
        return injectors.make_plan(injectors.build(section), self._place(cell, names))

    def _place(self, cell: Cell, names: tuple[str, ...]) -> injectors.Place:
        train = self.config["train"]
        return injectors.Place(
            seed=cell.seed,
            steps=train["total_steps"],
            batch_size=train["global_batch_size"],
            names=names,
            groups=self.pairs["train"].groups,
        )

    @property
    def pairs(self) -> dict[str, data.Pairs]:
        """Training and held-out data."""
        if self._data is None:
            model, rule = next(iter(self.config["models"])), self.config["baseline"]
            config = config_lib.training(self.config, model, rule)
            self._data = {
                "train": data.load(config, config["data"]["train_split"]),
                "held_out": data.held_out(config),
            }
        return self._data

    def _program_of(self, cell: Cell) -> program.Program:
        if self._program is None or self._program[0] != cell.program:
            config = config_lib.training(self.config, cell.model, cell.rule)
            key = cell.program[:2]
            if key not in self._shared:
                self._shared[key] = program.share(config, cell.precision)
            self._program = (
                cell.program,
                program.build(
                    config,
                    self._shared[key],
                    self.pairs["train"],
                    self.pairs["held_out"],
                    tuple(self.config["watch"]),
                ),
            )
        return self._program[1]


def run_grid(
    config: Config,
    workdir: pathlib.Path,
    *,
    max_seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Outcome:
    """Run the cells of a grid that are not there yet.

    Args:
      config: resolved.
      workdir: where cells are kept; made if need be.
      max_seconds: begin no cell after so long; None for no limit.
      stop: whether to begin no other cell.
      say: is told of every cell.

    Raises:
      jaxclip.lock.LockedError: another process runs in this folder.
      ValueError: a cell that can't be run.
      OSError: the folder can't be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = storage.reason(error, workdir.parent)
        raise type(error)(f"workdir {workdir} can't be made: {why}") from error
    began = time.monotonic()
    held = lock.Lock(workdir)
    try:
        wanted = config_lib.cells(config)
        todo = [c for c in wanted if cells_lib.read(cells_lib.path_of(workdir, config, c)) is None]
        lab, ran = Lab(config), 0
        lab.check(todo)
        done = len(wanted) - len(todo)
        for cell in todo:
            if stop() or (max_seconds is not None and time.monotonic() - began > max_seconds):
                break
            held.check()
            curves, about = lab.run(cell)
            cells_lib.write(cells_lib.path_of(workdir, config, cell), curves, about)
            done, ran = done + 1, ran + 1
            last = float(np.mean(curves["loss"][-config["last_steps"] :]))
            say(f"{done}/{len(wanted)} {cell}: loss {last:.3f}, {about['seconds']:.1f} s")
        return Outcome(done, len(wanted), ran)
    finally:
        held.release()
