"""Evaluation of a run's state, and of a checkpoint of a workdir (``jaxclip eval``)."""

from __future__ import annotations

import logging
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from jaxclip import config as config_lib
from jaxclip import storage
from jaxclip.data.bucket import BucketError
from jaxclip.evaluate import runner
from jaxclip.evaluate import tasks as tasks_lib
from jaxclip.train import checks, multihost, setup, tokenizer_check, workdir_config
from jaxclip.train import workdir as workdir_lib
from jaxclip.train.checkpoint import Checkpointer
from jaxclip.train.state import TrainState

logger = logging.getLogger("jaxclip")

# What stands for tasks beside `evaluate.tasks`.
_SPLIT_KEYS = ("zero_shot", "retrieval", "gallery_split")


def parse_task(text: str) -> dict[str, Any]:
    """A task of a command line: ``"zero_shot data=/x split=test templates=imagenet_80"``.

    Values are Python literals, anything else is taken as a string; what has spaces is quoted.

    Raises:
      ValueError: not of this form.
    """
    try:
        name, *options = shlex.split(text) or [""]
        if not name:
            raise ValueError("it names no evaluator")
        return {"name": name, **dict(config_lib.parse_override(option) for option in options)}
    except ValueError as error:
        raise ValueError(
            f"--task {text!r} is not of the form 'zero_shot data=DIR split=test': {error}"
        ) from error


def evaluate_state(
    experiment: setup.Experiment,
    state: TrainState,
    *,
    tokenizer: Any,
    workdir: pathlib.Path,
    step: int,
) -> dict[str, float]:
    """Evaluate the averaged parameters of a run's state if there are any, else the current ones.

    Args:
      experiment: of the run.
      state: after ``step`` updates.
      tokenizer: captions -> int32[n, L].
      workdir: gets the results.
      step: updates done.

    Returns:
      Metrics by ``split/task/name``.
    """
    averaged = state.ema_params is not None
    return runner.evaluate(
        experiment.encode_image,
        experiment.encode_text,
        state.ema_params if averaged else state.params,
        experiment.config,
        tokenizer=tokenizer,
        mesh=experiment.mesh,
        workdir=workdir,
        step=step,
        weights="ema" if averaged else "model",
        encode_tokens=experiment.encode_tokens,
    )


def evaluate_workdir(
    workdir: str | os.PathLike[str],
    *,
    step: int | None = None,
    overrides: Sequence[str] = (),
    tasks: Sequence[Mapping[str, Any]] = (),
) -> dict[str, float]:
    """Restore a checkpoint, evaluate it, print and return the results.

    Args:
      workdir: folder of a run, or an address.
      step: the checkpoint's step, or None for the newest usable one.
      overrides: ``"evaluate.zero_shot=['test_style']"`` and the like.
      tasks: evaluate these in place of what the run's configuration asks for; dicts as of
        ``evaluate.tasks``.

    Returns:
      Metrics by ``split/task/name``.

    Raises:
      ValueError: as :func:`jaxclip.evaluate.runner.check`, before anything is compiled.
      FileNotFoundError: likewise.
      workdir.WorkdirError: no such run, or no usable checkpoint in it.
    """
    place = storage.absolute(workdir)
    saved = workdir_config.read_config(place)
    config = config_lib.resolve(saved, overrides)
    tokenizer_check.warn(config_lib.resolve(saved)["tokenizer"], config["tokenizer"], place)
    if tasks:
        config["evaluate"] |= {"tasks": list(tasks), **{key: [] for key in _SPLIT_KEYS}}
    # No checkpoint is chosen here: the best of a run goes by what the run itself evaluates.
    runner.check({**config, "checkpoint": {**config["checkpoint"], "best_metric": ""}})
    if not tasks_lib.from_config(config):
        raise ValueError("there is nothing to evaluate; name a --task, or set evaluate.zero_shot")
    experiment = checks.build(config)
    tokenizer = checks.load_tokenizer(config)
    restored_step, weights, params = _restore(
        experiment, f"{place}/{workdir_lib.CHECKPOINTS}", step
    )
    metrics: dict[str, float] | None = None
    try:
        with workdir_lib.lent(place, lambda name: name == runner.RESULTS_FILE) as (folder, _):
            problem = storage.probe(epath.Path(folder)) if jax.process_index() == 0 else ""
            if problem:
                logger.warning("%s; the results are printed, but not kept", problem)
            metrics = runner.evaluate(
                experiment.encode_image,
                experiment.encode_text,
                params,
                config,
                tokenizer=tokenizer,
                mesh=experiment.mesh,
                workdir=None if not multihost.all_agree(not problem) else folder,
                step=restored_step,
                weights=weights,
                encode_tokens=experiment.encode_tokens,
            )
    except BucketError as error:
        if metrics is None:
            raise
        logger.warning("%s; the results are printed, but not kept", error)
    if jax.process_index() == 0:
        print(f"checkpoint of step {restored_step}")
        for metric, value in metrics.items():
            print(f"  {metric:<48} {value:8.4f}")
    return metrics


def _restore(
    experiment: setup.Experiment, checkpoints: str, step: int | None
) -> tuple[int, str, Any]:
    """What is evaluated: the averaged parameters where the run keeps them; nothing else is read.

    Args:
      experiment: of the run.
      checkpoints: their folder, or its address.
      step: of the checkpoint, or None for the newest usable one.

    Returns:
      The checkpoint's step, ``"ema"`` or ``"model"``, and the parameters.

    Raises:
      workdir.WorkdirError: there is no usable checkpoint.
    """
    state = experiment.abstract_state
    name = "params" if state.ema_params is None else "ema_params"
    wanted = {"step": state.step, name: getattr(state, name)}
    with Checkpointer(checkpoints, writable=False) as checkpointer:
        restored = (
            checkpointer.restore_latest(wanted, partial=True)
            if step is None
            else checkpointer.restore(step, wanted, partial=True)
        )
    if restored is None:
        raise workdir_lib.WorkdirError(f"{checkpoints} holds no usable checkpoint")
    weights = "model" if name == "params" else "ema"
    return int(restored.state["step"]), weights, restored.state[name]
