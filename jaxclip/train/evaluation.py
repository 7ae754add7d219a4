"""``jaxclip eval``: evaluate a checkpoint of a workdir, with the workdir's own configuration."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Sequence

import jax
from etils import epath

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.evaluate import runner
from jaxclip.train import agreement, checks, loop
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer

logger = logging.getLogger("jaxclip")


def evaluate_workdir(
    workdir: str | os.PathLike[str], *, step: int | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Restore a checkpoint, evaluate it, print and return the results.

    Args:
      workdir: folder of a run.
      step: the checkpoint's step, or None for the newest usable one.
      overrides: ``"evaluate.zero_shot=['test_style']"`` and the like.

    Returns:
      Metrics by ``split/task/name``.

    Raises:
      workdir.WorkdirError: no such run, or no usable checkpoint in it.
    """
    folder = pathlib.Path(storage.absolute(workdir))
    config = config_lib.resolve(workdir_lib.read_config(folder), overrides)
    experiment = checks.build(config)
    tokenizer = loop.load_tokenizer(config)
    # What is evaluated: the averaged parameters where the run keeps them. Nothing else is read.
    name = "params" if experiment.abstract_state.ema_params is None else "ema_params"
    wanted = {
        "step": experiment.abstract_state.step,
        name: getattr(experiment.abstract_state, name),
    }
    with Checkpointer(folder / "checkpoints", writable=False) as checkpointer:
        restored = (
            checkpointer.restore_latest(wanted, partial=True)
            if step is None
            else checkpointer.restore(step, wanted, partial=True)
        )
    if restored is None:
        raise workdir_lib.WorkdirError(f"{folder / 'checkpoints'} holds no usable checkpoint")
    restored_step = int(restored.state["step"])
    problem = storage.probe(epath.Path(folder)) if jax.process_index() == 0 else ""
    if problem:
        logger.warning("%s; the results are printed, but not kept", problem)
    metrics = runner.evaluate(
        experiment.encode_image,
        experiment.encode_text,
        restored.state[name],
        config,
        tokenizer=tokenizer,
        mesh=experiment.mesh,
        workdir=None if not agreement.all_agree(not problem) else folder,
        step=restored_step,
        weights="model" if name == "params" else "ema",
    )
    if jax.process_index() == 0:
        print(f"checkpoint of step {restored_step}")
        for metric, value in metrics.items():
            print(f"  {metric:<48} {value:8.4f}")
    return metrics
