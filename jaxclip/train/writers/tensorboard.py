"""TensorBoard events below ``workdir/tensorboard``."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time as clock
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxclip.train.writers.base import Run, Writer

FOLDER = "tensorboard"
_NUMBERS = itertools.count()


@dataclasses.dataclass
class TensorBoard(Writer):
    """Scalars as TensorBoard events, written by the caller's own thread.

    The thread of ``tensorboardX.SummaryWriter`` dies on a full disk, and its queue then blocks the
    run for good; here the error is the caller's.

    Attributes:
      flush_secs: events reach the disk at least this often, if there are any.
    """

    flush_secs: float = 15.0

    library: ClassVar[str] = "tensorboardX"

    _events: Any = dataclasses.field(default=None, init=False, repr=False)
    _flushed: float = dataclasses.field(default=0.0, init=False, repr=False)

    def open(self, run: Run) -> None:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        folder = run.workdir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        # Names hold the second and the host: two writers of one second shall not clash.
        suffix = f".{os.getpid()}.{next(_NUMBERS):04d}"
        self._events = event_file_writer.EventsWriter(str(folder / "events"), suffix)
        if run.resume_step is not None:
            # TensorBoard hides what an earlier process wrote from this step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.write_event(
                event_pb2.Event(step=run.resume_step + 1, wall_time=clock.time(), session_log=start)
            )
        self.flush()

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        scalars = [
            summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        summary = summary_pb2.Summary(value=scalars)
        self._events.write_event(event_pb2.Event(step=step, wall_time=time, summary=summary))
        if clock.monotonic() - self._flushed > self.flush_secs:
            self.flush()

    def flush(self) -> None:
        if self._events is not None:
            self._flushed = clock.monotonic()
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            events, self._events = self._events, None
            events.close()
