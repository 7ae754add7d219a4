"""``metrics.jsonl``: one JSON object a line; what the report is made of."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, TextIO

from jaxclip import storage
from jaxclip.train.writers.base import Run, Writer

FILE_NAME = "metrics.jsonl"


@dataclasses.dataclass
class Jsonl(Writer):
    """Appends a line for each call.

    It is ``{"step": 120, "time": 1735689600.1, "loss": 3.2, …}``: updates done, seconds since 1970,
    values. JSON has no NaN and no infinities: they are the strings ``"NaN"``, ``"Infinity"``,
    ``"-Infinity"`` (:func:`read_metrics` turns them back into floats). A step may have several
    lines. On going on, records of later steps are dropped.
    """

    _file: TextIO | None = dataclasses.field(default=None, init=False, repr=False)

    def open(self, run: Run) -> None:
        path = run.workdir / FILE_NAME
        _repair(path, run.resume_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        assert self._file is not None
        record = {"step": step, "time": round(time, 3), **storage.encode_floats(dict(values))}
        # One write of a whole line: a kill tears at most the last one.
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` in the order written; unreadable lines are left out.

    Args:
      workdir: the run's folder.

    Returns:
      Dicts with ``step`` (int), ``time`` (float, seconds since 1970) and values (float); empty if
      there is no file.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [record for record in map(_parse, file) if record is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return storage.decode_floats(record)


def _repair(path: pathlib.Path, resume_step: int | None) -> None:
    """Drop torn lines, and records of steps after ``resume_step``, whole or not at all."""
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    changed = False
    with (
        path.open(encoding="utf-8", errors="replace") as old,
        temporary.open("w", encoding="utf-8") as new,
    ):
        for line in old:
            record = _parse(line) if line.endswith("\n") else None
            if record is None or (resume_step is not None and record["step"] > resume_step):
                changed = True
            else:
                new.write(line)
    if changed:
        temporary.replace(path)
    else:
        temporary.unlink()
