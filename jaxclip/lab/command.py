"""``jaxclip lab``: run what is missing of a grid, then write its report."""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import threading
from typing import Any

import jax
import numpy as np

from jaxclip import config_file, storage
from jaxclip.lab import cells as cells_lib
from jaxclip.lab import config as config_lib
from jaxclip.lab import measures, runner

# Bytes of compiled programs that are kept in the folder of a grid.
_LARGEST_CACHE = 2**30


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
      ValueError: a mistake in the configuration or in ``--cell``, or a workdir in use.
    """
    config = config_lib.resolve(config_file.load_file(args.config, "lab"))
    workdir = pathlib.Path(storage.absolute(args.workdir)) if args.workdir else None
    if args.cell is not None:
        return _one_cell(config, workdir, config_lib.parse_cell(args.cell, config))
    if args.list:
        for cell in config_lib.cells(config):
            print("+" if workdir and _known(workdir, config, cell) else "-", cell)
        return 0
    if workdir is None:
        raise ValueError("--workdir is missing: name a folder for the cells and the report")
    _keep_programs(workdir)
    with _Interrupts() as interrupts:
        try:
            outcome = runner.run_grid(
                config, workdir, max_seconds=args.max_seconds, stop=lambda: interrupts.seen
            )
        except KeyboardInterrupt:
            return _interrupted()
    if interrupts.seen:
        return _interrupted()
    if outcome.done < outcome.total:
        print(f"{outcome.done} of {outcome.total} cells; the same command goes on")
    from jaxclip.lab import report

    print(report.write(config, workdir, args.config))
    return 0


def _one_cell(config: dict[str, Any], workdir: pathlib.Path | None, cell: config_lib.Cell) -> int:
    curves, _ = runner.Lab(config).run(cell)
    print(cell)
    for name, value in measures.of_cell(curves, config["last_steps"]).items():
        print(f"  {name} {value:.6g}")
    known = _known(workdir, config, cell) if workdir else None
    if workdir and known is None:
        print(f"not among the cells in {workdir}")
    if known is not None:
        old = known[0]
        other = [
            n for n in old if not np.array_equal(old[n], curves.get(n, np.nan), equal_nan=True)
        ]
        print(f"as in {workdir}, to the bit" if not other else f"differs: {', '.join(other)}")
        return 1 if other else 0
    return 0


class _Interrupts:
    """Remembers Ctrl-C: raised within a callback of JAX's, KeyboardInterrupt is ignored there."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> _Interrupts:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        self.seen = True
        raise KeyboardInterrupt


def _interrupted() -> int:
    """Say so, and leave without the interpreter's own end, which crashes in threads of XLA's and
    TensorFlow's that were in the middle of something. Cells are on disk whole or not at all."""
    print("interrupted; the same command goes on with the next cell", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


def _known(workdir: pathlib.Path, config: dict[str, Any], cell: config_lib.Cell) -> Any:
    return cells_lib.read(cells_lib.path_of(workdir, config, cell))


def _keep_programs(workdir: pathlib.Path) -> None:
    """Keep compiled programs beside the cells, so that what goes on need not compile again."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_compilation_cache_max_size", _LARGEST_CACHE)
