"""TensorBoard events below ``workdir/tensorboard``."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxclip.train.writers.base import Run, Writer

FOLDER = "tensorboard"
_NUMBERS = itertools.count()


@dataclasses.dataclass
class TensorBoard(Writer):
    """Scalars as TensorBoard events.

    Attributes:
      flush_secs: events reach the disk at least this often.
    """

    flush_secs: int = 15

    library: ClassVar[str] = "tensorboardX"

    _events: Any = dataclasses.field(default=None, init=False, repr=False)

    def open(self, run: Run) -> None:
        from tensorboardX import SummaryWriter

        # It warns of every NaN; a curve that ends in NaN speaks for itself.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._events = SummaryWriter(
            logdir=str(run.workdir / FOLDER),
            # TensorBoard hides what an earlier process wrote from this step on.
            purge_step=None if run.resume_step is None else run.resume_step + 1,
            flush_secs=self.flush_secs,
            # Names hold the second and the host: two writers of one second shall not clash.
            filename_suffix=f".{os.getpid()}.{next(_NUMBERS):04d}",
        )

    def write(self, step: int, time: float, values: Mapping[str, float]) -> None:
        for name, number in values.items():
            self._events.add_scalar(name, number, global_step=step, walltime=time)

    def flush(self) -> None:
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
