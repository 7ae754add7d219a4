"""``on_spike.actions="rewind"`` in the lab: what the trainer does with checkpoints, without them.

A run is a function of its plan. Going back to a checkpoint and passing over batches is the run
whose plan lacks their rows: up to the checkpoint it is the same run, to the bit. What an injector
does in a step belongs to its batch and is passed over with it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from jaxclip.config import Config
from jaxclip.lab.injectors import Plan
from jaxclip.train import rewind
from jaxclip.train.rewind import Rewinds

Curves = dict[str, np.ndarray]

# float32[], how many steps were done over again, and how often the run went back.
REPEATED, TIMES = "steps_repeated", "rewinds"


def spare(config: Config) -> int:
    """Rows that a plan needs behind its T steps: as many as rewinds can pass over at most."""
    if not Rewinds(config).wanted:
        return 0
    policy = config["on_spike"]
    most = policy["rewind_steps"] + config["checkpoint"]["every_steps"] + policy["rewind_beyond"]
    return int(policy["rewind_limit"] * most)


def run(once: Callable[[Plan], Curves], plan: Plan, config: Config) -> Curves:
    """Run a plan, and run it again without the batches before each spike, where the policy is on.

    Args:
      once: runs a plan of T steps; its curves have ``watch/spike``.
      plan: of T steps and :func:`spare` more.
      config: resolved training configuration.

    Returns:
      The curves of the past that is left, :data:`REPEATED` and :data:`TIMES`. Where the limit ends
      the run, losses from the spike on are NaN.
    """
    rewinds, total = Rewinds(config), config["total_steps"]
    if not rewinds.wanted:
        return once(plan)
    every, back = config["checkpoint"]["every_steps"], config["on_spike"]["rewind_steps"]
    repeated = 0
    while True:
        rows = np.asarray([rewinds.batch(step) for step in range(1, total + 1)])
        curves = once(jax.tree.map(lambda array, rows=rows: array[rows], plan))
        spikes = np.flatnonzero(curves["watch/spike"]) + 1
        if not len(spikes):
            break
        step = int(spikes[0])
        target = max(0, (step - back) // every * every)
        try:
            rewinds.check_limit(step, target)
        except rewind.SpikeError:
            curves["loss"] = np.where(np.arange(1, total + 1) >= step, np.nan, curves["loss"])
            break
        rewinds.note(step, target)
        repeated += step - target
    done = {REPEATED: repeated, TIMES: len(rewinds.done)}
    return {**curves, **{name: np.asarray(value, np.float32) for name, value in done.items()}}
