"""Going back before a spike and passing over the batches that led to it.

PaLM's cure (Chowdhery et al., 2022, arXiv:2204.02311, section 5.1): the run starts again from a
checkpoint before the spike and leaves out the batches seen since. The same batches do no harm from
another checkpoint, so that it is a matter of state and data together.

What was passed over is saved with each checkpoint. A run that is killed on the way goes on from a
checkpoint of before the spike, comes to the same spike, and decides the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jaxclip.config import Config
from jaxclip.errors import RunError
from jaxclip.spike_actions import REWIND, as_actions
from jaxclip.train import multihost
from jaxclip.train.checkpoint import Checkpointer, CheckpointError

logger = logging.getLogger("jaxclip")

# What checkpoints hold of it, under this key of `extra`.
KEY = "rewinds"


class SpikeError(RunError):
    """A run was rewound as often as it may be, and there is another spike."""


class Rewinds:
    """Which batches are passed over, and how often the run went back.

    Attributes:
      done: ``{"step", "to", "passed_over": [first, last]}`` of each time, in order.
    """

    def __init__(self, config: Config, done: Sequence[Mapping[str, Any]] = ()):
        """
        Args:
          config: resolved configuration.
          done: as a checkpoint holds it.
        """
        self._given = config["skip_batches"]
        self._policy = config["on_spike"]
        self._every = config["checkpoint"]["every_steps"]
        self.wanted = REWIND in as_actions(self._policy["actions"])
        self.done = [dict(each) for each in done]

    @property
    def passed_over(self) -> list[list[int]]:
        """``[first, last]`` of the batches that no step gets, ascending and apart."""
        from jaxclip.data import order

        return order.join_ranges([*self._given, *(each["passed_over"] for each in self.done)])

    def batch(self, step: int) -> int:
        """The number of the batch in the data's order that a step, counted from 1, gets."""
        from jaxclip.data import order

        return order.batch_of(step - 1, self.passed_over)

    def keep_every(self) -> tuple[int, int]:
        """Which checkpoints must stay for it (:class:`.Checkpointer`)."""
        if not self.wanted:
            return 1, 0
        return self._every, -(-self._policy["rewind_steps"] // self._every) + 1

    def check_limit(self, step: int, newest: int | None) -> None:
        """Refuse to go back once more than allowed.

        Args:
          step: of the spike.
          newest: the newest checkpoint from before it, for the message.

        Raises:
          SpikeError: it was done ``on_spike.rewind_limit`` times.
        """
        limit = self._policy["rewind_limit"]
        if len(self.done) < limit:
            return
        left = "there is no checkpoint" if newest is None else f"the newest checkpoint is {newest}"
        raise SpikeError(
            f"spike at step {step} after {len(self.done)} rewinds (on_spike.rewind_limit={limit}; "
            f"{left}); with --extend lower optim.learning_rate, set optim.clip, or allow more "
            "rewinds; workdir/spikes shows the batches if watch.enabled"
        )

    def go_back(
        self, step: int, checkpointer: Checkpointer, abstract_state: Any
    ) -> tuple[int, Any | None]:
        """Find and read the checkpoint to go back to, and note what is passed over from there.

        Only checkpoints of the regular kind serve, at multiples of ``checkpoint.every_steps``: one
        that a stop left would not be there in a run without the stop.

        Args:
          step: of the spike.
          checkpointer: of the run; checkpoints after the one chosen are removed.
          abstract_state: as for :meth:`.Checkpointer.restore`.

        Returns:
          The step, and its state; None for the state at step 0, which is not on disk.
        """
        latest = step - self._policy["rewind_steps"]
        checkpointer.wait()  # what is on its way to the disk counts, however slow the disk is
        known = sorted(multihost.broadcast_steps(checkpointer.steps()), reverse=True)
        target, state = 0, None
        for candidate in known:
            if candidate > latest or candidate % self._every:
                continue
            try:
                state = checkpointer.restore(candidate, abstract_state, optional="guard").state
            except CheckpointError as error:
                logger.warning("%s; going back to the one before it", error)
                continue
            target = candidate
            break
        checkpointer.forget_after(target)
        self.note(step, target)
        return target, state

    def note(self, step: int, target: int) -> None:
        """Note that a run goes back, and what it passes over.

        Args:
          step: of the spike.
          target: the step that it goes back to.
        """
        count = self._policy["rewind_batches"] or step - target
        first = max(target + 1, step - count + 1)
        passed = [self.batch(first), self.batch(step) + self._policy["rewind_beyond"]]
        self.done.append({"step": step, "to": target, "passed_over": passed})

    def message(self) -> str:
        """What to tell of the last time."""
        last = self.done[-1]
        first, end = last["passed_over"]
        return (
            f"  spike at step {last['step']}: going back to step {last['to']} and passing over "
            f"batches {first} to {end} (rewind {len(self.done)} of "
            f"{self._policy['rewind_limit']})"
        )


def check_given(config: Config, changes: Mapping[str, Any], start: int, rewinds: Rewinds) -> None:
    """Refuse ``skip_batches`` that would change the data of steps that are done.

    Args:
      config: resolved configuration.
      changes: ``{key: (before, now)}`` of a run that is extended.
      start: steps done.
      rewinds: of the run.

    Raises:
      ValueError: names the first batch that may still be passed over.
    """
    from jaxclip.data import order

    if "skip_batches" not in changes:
        return
    before, now = changes["skip_batches"]
    old = [list(pair) for pair in before] if isinstance(before, list) else []
    passed = order.join_ranges([*old, *(each["passed_over"] for each in rewinds.done)])
    done = order.batch_of(start - 1, passed) if start else -1
    for pair in [*old, *now]:
        if (pair in old) != (pair in now) and pair[0] <= done:
            raise ValueError(
                f"skip_batches={config['skip_batches']}: batches up to {done} are trained on "
                f"already; pass over batches from {done + 1} on"
            )
