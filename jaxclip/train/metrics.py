"""Numbers of a run: written to all writers of the configuration, read back from the workdir."""

from __future__ import annotations

import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxclip import storage
from jaxclip.train import writers as writers_lib
from jaxclip.train.progress import Progress
from jaxclip.train.writers import MetricsError, Writer
from jaxclip.train.writers.jsonl import FILE_NAME, read_metrics

__all__ = [
    "FILE_NAME",
    "Curves",
    "MetricWriter",
    "MetricsError",
    "Progress",
    "curves",
    "read_metrics",
]

_LOG = logging.getLogger(__name__)

_RESERVED = ("step", "time")

# ``{name: (steps int64[N], values float64[N])}``, steps ascending.
Curves = dict[str, tuple[np.ndarray, np.ndarray]]


class MetricWriter:
    """Hands numbers to ``metrics.jsonl`` and to the other writers of a configuration.

    With several processes only process 0 writes; the others' calls do nothing. A writer that may
    fail (its service is gone) is closed with a warning: the run goes on, and ``metrics.jsonl`` has
    everything.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        writers: str | Sequence[str | Mapping[str, Any]] = writers_lib.DEFAULT,
        *,
        resume_step: int | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """Open the writers of a workdir, which is created if missing.

        Args:
          workdir: the run's folder.
          writers: as of :func:`jaxclip.train.writers.from_config`.
          resume_step: the step the run goes on from (0 for a new run): later records, which a
            killed run wrote beyond its last checkpoint, are dropped. None keeps everything.
          config: resolved configuration, for writers that show it.

        Raises:
          MetricsError: a writer can't start: the folder is unwritable, a service refuses.
          ValueError: as :func:`jaxclip.train.writers.from_config`.
        """
        self._workdir = pathlib.Path(workdir)
        self._writers: list[Writer] = []
        if jax.process_index() != 0:
            return
        run = writers_lib.Run(self._workdir, resume_step, config or {})
        for writer in writers_lib.from_config(writers):
            try:
                self._workdir.mkdir(parents=True, exist_ok=True)
                writer.open(run)
            except Exception as error:
                if isinstance(error, OSError) and not writer.may_fail:
                    raise self._explain(error) from error
                self.close()
                raise MetricsError(
                    f"metric writer {_name(writer)!r} can't start: {_line(error)}; mend it, or "
                    "take it out of config.writers"
                ) from error
            self._writers.append(writer)

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
        if not self._writers:
            return
        now = time.time()
        # As a list, for jax would sort a dict by its keys.
        fetched = jax.device_get(list(values.values()))
        numbers = {name: _to_float(name, x) for name, x in zip(values, fetched, strict=True)}
        self._each(lambda writer: writer.write(int(step), now, numbers))

    def flush(self) -> None:
        """Put everything on disk.

        Raises:
          MetricsError: the disk is full or gone.
        """
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Flush and close; further writes do nothing.

        Raises:
          MetricsError: the disk is full or gone.
        """
        writers, problem = self._writers, None
        for writer in writers:
            self._writers = [writer]
            try:
                self._each(lambda each: each.close())
            except MetricsError as error:
                problem = error
        self._writers = []
        if problem is not None:
            raise problem

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in list(self._writers):
            try:
                call(writer)
            except Exception as error:
                if not writer.may_fail:
                    if isinstance(error, OSError):
                        raise self._explain(error) from error
                    raise
                _LOG.warning(
                    "metric writer %r failed and is closed; the run goes on, %s has everything: %s",
                    _name(writer), FILE_NAME, _line(error),
                )  # fmt: skip
                self._writers.remove(writer)

    def _explain(self, error: OSError) -> MetricsError:
        reason = storage.reason(error, epath.Path(self._workdir))
        return MetricsError(f"{self._workdir / FILE_NAME} can't be written: {reason}")


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


def _to_float(name: str, value: Any) -> float:
    if name in _RESERVED:
        raise ValueError(f"metric {name!r} has a reserved name; call it something else")
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"metric {name!r} has shape {array.shape}; write scalars")
    return float(array.reshape(()))


def _name(writer: Writer) -> str:
    return type(writer).__name__.lower()


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
