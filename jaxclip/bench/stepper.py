"""A run that is taken step by step, as benchmarks of methods time it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any


def stepper(
    experiment: Any, tokenizer: Any, stack: contextlib.ExitStack, seed: int | None = None
) -> Callable[[], Any]:
    """Begin a run, in this process alone.

    Args:
      experiment: of :func:`jaxclip.train.setup.build`.
      tokenizer: of its configuration.
      stack: closes the run's input when it is closed.
      seed: of the initial weights and of the data; default: the configuration's.

    Returns:
      A function that does the next step, waits for it, and returns the state after it.
    """
    from jaxclip import parallel
    from jaxclip.data import pipeline

    config = experiment.config if seed is None else {**experiment.config, "seed": seed}
    batches = pipeline.train_iterator(
        config["data"],
        tokenizer=tokenizer,
        global_batch_size=config["global_batch_size"],
        seed=config["seed"],
        start_step=0,
        process_index=0,
        process_count=1,
        spec=experiment.batch_spec,
    )
    stack.callback(batches.close)
    state = experiment._replace(config=config).init_state()

    def step() -> Any:
        nonlocal state
        batch = parallel.to_global(next(batches), experiment.mesh)
        state, metrics = experiment.train_step(state, batch)
        metrics["loss"].block_until_ready()
        return state

    return step
