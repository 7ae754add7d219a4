"""Numbers of a run on disk: ``metrics.jsonl`` for programs, TensorBoard events for people."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath

from jaxclip import storage
from jaxclip.train.errors import RunError
from jaxclip.train.progress import Progress

__all__ = ["Curves", "MetricWriter", "MetricsError", "Progress", "curves", "read_metrics"]

FILE_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
_RESERVED = ("step", "time")
_NUMBERS = itertools.count()
_FLUSH_SECONDS = 15.0

# ``{name: (steps int64[N], values float64[N])}``, steps ascending.
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


class MetricsError(RunError):
    """Metrics can't be written; the message names the path and the way out."""


class MetricWriter:
    """Appends one JSON object a line to ``metrics.jsonl``, and the same to TensorBoard.

    A line is ``{"step": 120, "time": 1735689600.1, "loss": 3.2, …}``: updates done, seconds since
    1970, values. JSON has no NaN and no infinities: they are the strings ``"NaN"``,
    ``"Infinity"``, ``"-Infinity"`` (:func:`read_metrics` turns them back into floats). A step may
    have several lines. With several processes only process 0 writes; the others' calls do nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
    ):
        """Open the files of a workdir, created if missing.

        Args:
          workdir: the run's folder.
          resume_step: the step the run goes on from (0 for a new run): later records, which a
            killed run wrote beyond its last checkpoint, are dropped. None keeps everything.
          tensorboard: also write TensorBoard events below ``workdir/tensorboard``.

        Raises:
          MetricsError: the files can't be written.
        """
        self.path = pathlib.Path(workdir) / FILE_NAME
        self._file: TextIO | None = None
        self._events: Any = None
        if jax.process_index() != 0:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _repair(self.path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            if tensorboard:
                self._events = _Events(self.path.parent / TENSORBOARD_FOLDER, resume_step)
        except OSError as error:
            raise self._explain(error) from error

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, _kind: Any, error: Any, _trace: Any) -> None:
        try:
            self.close()
        except MetricsError:
            if error is None:  # never hide the first error behind this one
                raise

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record values of a step.

        Args:
          step: updates done.
          values: scalars (Python, numpy or jax; device arrays are fetched, which waits for them).

        Raises:
          MetricsError: the disk is full or gone.
          ValueError: a value is not a scalar, or is named ``step`` or ``time``.
        """
        if self._file is None:
            return
        now = time.time()
        # As a list, for jax would sort a dict by its keys.
        fetched = jax.device_get(list(values.values()))
        numbers = {name: _to_float(name, x) for name, x in zip(values, fetched, strict=True)}
        record = {"step": int(step), "time": round(now, 3), **storage.encode_floats(numbers)}
        try:
            # One write of a whole line: a kill tears at most the last one.
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(int(step), now, numbers)
        except OSError as error:
            raise self._explain(error) from error

    def flush(self) -> None:
        """Put everything on disk.

        Raises:
          MetricsError: the disk is full or gone.
        """
        try:
            if self._file is not None:
                self._file.flush()
            if self._events is not None:
                self._events.flush()
        except OSError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        """Flush and close; further writes do nothing.

        Raises:
          MetricsError: the disk is full or gone.
        """
        files, self._file, self._events = (self._file, self._events), None, None
        problem = None
        for file in files:
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                problem = error
        if problem is not None:
            raise self._explain(problem) from problem

    def _explain(self, error: OSError) -> MetricsError:
        folder = epath.Path(self.path.parent)
        return MetricsError(f"{self.path} can't be written: {storage.reason(error, folder)}")


class _Events:
    """Events for TensorBoard, written by the caller's own thread.

    The thread of ``tensorboardX.SummaryWriter`` dies on a full disk, and its queue then blocks the
    run for good; here the error is the caller's.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int | None):
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2, summary_pb2

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        # Names hold the second and the host: two writers of one second shall not clash.
        suffix = f".{os.getpid()}.{next(_NUMBERS):04d}"
        self._writer = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        self._flushed = time.monotonic()
        if resume_step is not None:
            # TensorBoard hides what an earlier process wrote from this step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            event = event_pb2.Event(step=resume_step + 1, wall_time=time.time(), session_log=start)
            self._writer.write_event(event)
            self.flush()

    def write(self, step: int, now: float, numbers: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        summary = self._summary(value=values)
        self._writer.write_event(self._event(step=step, wall_time=now, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


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


def curves(records: Iterable[Mapping[str, Any]]) -> Curves:
    """Turn records into one curve a name.

    Args:
      records: as of :func:`read_metrics`.

    Returns:
      ``{name: (steps int64[N], values float64[N])}``, steps ascending; where a step has a name
      more than once, the last one counts. The wall time is the curve ``time``.
    """
    points: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                points.setdefault(name, {})[record["step"]] = float(value)
    result = {}
    for name, by_step in points.items():
        steps = np.array(sorted(by_step), np.int64)
        result[name] = (steps, np.array([by_step[int(step)] for step in steps], np.float64))
    return result


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


def _to_float(name: str, value: Any) -> float:
    if name in _RESERVED:
        raise ValueError(f"metric {name!r} has a reserved name; call it something else")
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"metric {name!r} has shape {array.shape}; write scalars")
    return float(array.reshape(()))
