"""The metrics of steps between the device and what shows and keeps them."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxclip.train import multihost, watch
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.describe import describe_captions
from jaxclip.train.metrics import MetricWriter, Progress


class StepMetrics:
    """Metrics that are still on the device, until :meth:`flush` fetches, writes and shows them.

    Args:
      writer: where they are kept.
      progress: where they are shown.
      held: the workdir; metrics are written only while it is ours.
    """

    def __init__(self, writer: MetricWriter, progress: Progress, held: workdir_lib.Workdir):
        self.writer, self.progress, self.held = writer, progress, held
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._unusable = 0
        self._told_of_captions = False

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take those of a step, without waiting for it."""
        self._pending.append((step, metrics))

    def drop_after(self, step: int) -> None:
        """Forget those of later steps."""
        self._pending = [(at, values) for at, values in self._pending if at <= step]

    def flush(self, stats: Mapping[str, Mapping[str, int]]) -> None:
        """Fetch, write and show the metrics of the steps since the last flush.

        Args:
          stats: what this process met in the data so far (:meth:`.TrainIterator.stats`).
        """
        unusable, captions = stats["records"], stats["captions"]
        if not self._pending:
            return
        self.held.check()
        fetched = [(step, jax.device_get(scalars(metrics))) for step, metrics in self._pending]
        self._pending.clear()
        for step, metrics in fetched:
            self.writer.write(step, {key: float(value) for key, value in metrics.items()})
        step, _ = fetched[-1]
        speed = self.progress.update(fetched)
        count = multihost.total(sum(unusable.values()))
        dropped = {}
        if "boxes" in stats:
            dropped["boxes_outside"] = multihost.total(stats["boxes"]["outside"])
        self.writer.write(step, {**speed, "unusable_records": count, **dropped})
        if not self._told_of_captions:
            self._told_of_captions = True
            self.progress.message(describe_captions(captions))
        if count > self._unusable:
            self._unusable = count
            reasons = ", ".join(f"{count} {reason}" for reason, count in unusable.items())
            where = "" if jax.process_count() == 1 else f" ({count} on all hosts)"
            self.progress.message(
                f"  records replaced because they can't be used{where}: {reasons or 'none here'}"
            )


def scalars(metrics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Metrics without the vectors that are kept for spikes only."""
    return {name: x for name, x in metrics.items() if not name.startswith(watch.TENSORS)}
